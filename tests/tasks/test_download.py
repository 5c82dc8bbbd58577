"""Downloads against a server in a thread of this process: whole, resumed, or refused."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gradshare.errors import DataError
from gradshare.tasks import download as module
from gradshare.tasks.dataset import Archive
from gradshare.tasks.download import download
from tests.tasks.download_server import DATA, MD5, Handler, Server

REMEDY = "try again later, or download it by hand and pass --from PATH"


def refusal(archive: Archive, folder: Path) -> str:
    with pytest.raises(DataError) as error:
        download(archive, folder)
    return str(error.value)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("md5", [MD5, None])
def test_fetches_a_file_with_progress(server: Server, tmp_path: Path, md5: str | None) -> None:
    seen: list[tuple[int, int | None]] = []
    folder = tmp_path / "new" / "folder"
    path = download(server.archive(md5), folder, lambda done, total: seen.append((done, total)))
    assert path == folder / "a.zip"
    assert path.read_bytes() == DATA
    assert left(folder) == ["a.zip"]
    assert seen[-1] == (len(DATA), len(DATA))
    assert seen == sorted(seen)


@pytest.mark.parametrize("md5", [MD5, None])
def test_does_not_fetch_a_complete_file_again(
    server: Server, tmp_path: Path, md5: str | None
) -> None:
    download(server.archive(md5), tmp_path)
    assert download(server.archive(md5), tmp_path) == tmp_path / "a.zip"
    assert len(server.requests) == 1


def test_does_not_overwrite_another_file(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"mine")
    message = refusal(server.archive(), tmp_path)
    assert message.startswith(f"{path} has the md5 ")
    assert message.endswith(
        f", the published file {MD5}; delete it to download it again, or pass --from PATH if you "
        "mean to use it as it is"
    )
    path.write_bytes(b"<html>")
    assert f"{path} is a web page; delete it" in refusal(server.archive(None), tmp_path)
    path.write_bytes(b"")
    assert f"{path} is empty; delete it" in refusal(server.archive(None), tmp_path)
    assert server.requests == []


@pytest.mark.parametrize("md5", [MD5, None])
def test_resumes_after_dropped_connections(server: Server, tmp_path: Path, md5: str | None) -> None:
    server.drop_after = [70_000] * 4  # more drops than attempts without progress are allowed
    assert download(server.archive(md5), tmp_path).read_bytes() == DATA
    assert server.requests == [None, *(f"bytes={70_000 * i}-" for i in (1, 2, 3, 4))]


def test_resumes_what_an_earlier_call_left(server: Server, tmp_path: Path) -> None:
    def interrupt(done: int, _total: int | None) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(server.archive(None), tmp_path, interrupt)
    kept = (tmp_path / "a.zip.part").stat().st_size
    assert kept > 100_000
    assert not (tmp_path / "a.zip").exists()
    assert download(server.archive(None), tmp_path).read_bytes() == DATA
    assert server.requests == [None, f"bytes={kept}-"]
    assert left(tmp_path) == ["a.zip"]


def test_starts_over_when_the_file_has_changed(server: Server, tmp_path: Path) -> None:
    server.drop_after = [100_000]
    server.statuses = [200, 404]
    refusal(server.archive(None), tmp_path)
    server.data, server.etag = DATA[::-1], '"v2"'
    assert download(server.archive(None), tmp_path).read_bytes() == DATA[::-1]


def test_starts_over_where_nothing_tells_versions_apart(server: Server, tmp_path: Path) -> None:
    server.etag = None
    server.drop_after = [100_000]
    assert download(server.archive(None), tmp_path).read_bytes() == DATA
    assert server.requests == [None, None]


def test_a_checksum_is_enough_to_resume(server: Server, tmp_path: Path) -> None:
    server.etag = None
    server.drop_after = [100_000]
    assert download(server.archive(), tmp_path).read_bytes() == DATA
    assert server.requests == [None, "bytes=100000-"]


def test_starts_over_when_what_was_there_is_of_another_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(b"another file")
    assert download(server.archive(), tmp_path).read_bytes() == DATA
    assert server.requests == ["bytes=12-", None]


def test_a_server_that_ignores_ranges_sends_it_whole(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.drop_after = [100_000]
    assert download(server.archive(), tmp_path).read_bytes() == DATA
    assert left(tmp_path) == ["a.zip"]


def test_gives_up_when_nothing_moves_on(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.drop_after = [100_000] * 10
    message = refusal(server.archive(), tmp_path)
    assert (
        f"cannot download {server.archive().url}: the connection ended after 100,000 of 300,000 "
        f"bytes; {REMEDY}"
    ) == message
    assert len(server.requests) == 4  # one that made progress, and three after it
    assert (tmp_path / "a.zip.part").stat().st_size == 100_000


def test_a_part_that_is_already_whole_needs_no_more(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(DATA)
    assert download(server.archive(), tmp_path).read_bytes() == DATA
    assert server.requests == [f"bytes={len(DATA)}-"]


def test_a_part_that_is_longer_than_the_file_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(DATA + b"more")
    assert download(server.archive(), tmp_path).read_bytes() == DATA


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/zip"])
def test_refuses_a_web_page(server: Server, tmp_path: Path, content_type: str) -> None:
    server.data, server.content_type = (
        b"\n<!DOCTYPE html><title>Quota exceeded</title>",
        content_type,
    )
    assert (
        f"cannot download {server.archive(None).url}: the server answered with a web page instead "
        f"of the file; {REMEDY}"
    ) == refusal(server.archive(None), tmp_path)
    assert left(tmp_path) == []
    assert len(server.requests) == 1


def test_a_web_page_does_not_replace_what_was_there(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(DATA[:1000])
    server.ranges, server.content_type = False, "text/html"
    refusal(server.archive(), tmp_path)
    assert (tmp_path / "a.zip.part").read_bytes() == DATA[:1000]


def test_refuses_a_wrong_checksum(server: Server, tmp_path: Path) -> None:
    wrong = "0" * 32
    assert (
        f"cannot download {server.archive().url}: its md5 is {MD5} and not the published {wrong}, "
        f"so it was changed or damaged on its way; {REMEDY}"
    ) == refusal(server.archive(wrong), tmp_path)
    assert left(tmp_path) == []


def test_does_not_repeat_what_the_server_refuses(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    assert (
        f"cannot download {server.archive().url}: the server answered 404 Not Found; {REMEDY}"
    ) == refusal(server.archive(), tmp_path)
    assert len(server.requests) == 1


def test_waits_for_a_busy_server(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429, 500]
    assert download(server.archive(), tmp_path).read_bytes() == DATA
    server.statuses = [503] * 4
    assert "the server answered 503 Service Unavailable" in refusal(
        server.archive(), tmp_path / "again"
    )


def test_names_a_server_that_is_not_there(server: Server, tmp_path: Path) -> None:
    server.server_close()
    message = refusal(server.archive(), tmp_path)
    assert message.startswith(f"cannot download {server.archive().url}: ")
    assert "refused" in message
    assert message.endswith(REMEDY)


def test_a_silent_server_times_out(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(Handler, "do_GET", lambda _handler: threading.Event().wait(0.5))
    assert "timed out" in refusal(server.archive(), tmp_path)


def test_names_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal(server.archive(), tmp_path / "file")
    assert f"cannot write {tmp_path / 'file' / 'a.zip.part'}" in message
    assert "make room on the disk or choose another folder" in message


def test_a_folder_in_the_way_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip").mkdir()
    assert f"{tmp_path / 'a.zip'} is in the way" in refusal(server.archive(), tmp_path)


@pytest.mark.parametrize("md5", [MD5, None])
def test_of_two_at_once_one_fetches_and_the_other_waits(
    server: Server, tmp_path: Path, md5: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    under_way, second_waits = threading.Event(), threading.Event()

    class Notice(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            second_waits.set()

    def halt(done: int, total: int | None) -> None:
        under_way.set()
        assert second_waits.wait(30)

    notice = Notice()
    module.log.addHandler(notice)
    try:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(download, server.archive(md5), tmp_path, halt)
            assert under_way.wait(30)
            second = pool.submit(download, server.archive(md5), tmp_path)
            paths = [first.result(60), second.result(60)]
    finally:
        module.log.removeHandler(notice)
    assert paths == [tmp_path / "a.zip"] * 2
    assert paths[0].read_bytes() == DATA
    assert server.requests == [None]
    assert left(tmp_path) == ["a.zip"]
    assert caplog.messages == [f"another process is downloading {paths[0]}; waiting for it"]


def test_one_that_waited_for_a_download_that_failed_goes_on(server: Server, tmp_path: Path) -> None:
    under_way, may_fail = threading.Event(), threading.Event()

    def fail(done: int, total: int | None) -> None:
        if done > 100_000:
            under_way.set()
            assert may_fail.wait(30)
            raise KeyboardInterrupt

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(download, server.archive(), tmp_path, fail)
        assert under_way.wait(30)
        second = pool.submit(download, server.archive(), tmp_path)
        may_fail.set()
        with pytest.raises(KeyboardInterrupt):
            first.result(60)
        assert second.result(60).read_bytes() == DATA
    assert left(tmp_path) == ["a.zip"]
