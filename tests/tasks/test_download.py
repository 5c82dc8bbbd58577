"""Downloads against a server in a thread of this process: whole, or refused."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from gradshare.errors import DataError
from gradshare.tasks import download as module
from gradshare.tasks.download import download
from gradshare.tasks.readers.dataset import Archive
from tests.tasks.download_server import DATA, MD5, Handler, Server

# pooch does not close the answer of a download that broke off.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

REMEDY = "try again later, or download it by hand and pass --from PATH"


def refusal(archive: Archive, folder: Path) -> str:
    with pytest.raises(DataError) as error:
        download(archive, folder)
    return str(error.value)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("md5", [MD5, None])
def test_a_file_is_fetched_once_with_progress(
    server: Server, tmp_path: Path, md5: str | None
) -> None:
    seen: list[tuple[int, int | None]] = []
    folder = tmp_path / "new" / "folder"
    path = download(server.archive(md5), folder, lambda done, total: seen.append((done, total)))
    assert path == folder / "a.zip"
    assert path.read_bytes() == DATA
    assert left(folder) == ["a.zip"]
    assert seen[-1] == (len(DATA), len(DATA))
    assert seen == sorted(seen)
    assert download(server.archive(md5), folder) == path
    assert server.requests == 1


def test_a_damaged_file_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(DATA[:1000])
    assert download(server.archive(), tmp_path).read_bytes() == DATA


def test_a_failure_that_passes_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503]
    assert download(server.archive(), tmp_path).read_bytes() == DATA
    server.drop_after = [100_000]
    assert download(server.archive(None), tmp_path / "again").read_bytes() == DATA


def test_a_download_that_breaks_off_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.drop_after = [100_000] * 2
    message = refusal(server.archive(None), tmp_path)
    assert message.startswith(f"cannot download {server.archive().url}: ")
    assert "100000 bytes read" in message
    assert message.endswith(REMEDY)
    assert left(tmp_path) == []


def test_a_web_page_is_refused(server: Server, tmp_path: Path) -> None:
    server.data = b"\n<!DOCTYPE html><title>Quota exceeded</title>"
    assert (
        f"cannot download {server.archive(None).url}: the server answered with a web page instead "
        f"of the file; {REMEDY}"
    ) == refusal(server.archive(None), tmp_path)
    assert left(tmp_path) == []
    assert server.requests == 1


def test_a_wrong_checksum_is_refused(server: Server, tmp_path: Path) -> None:
    wrong = "0" * 32
    message = refusal(server.archive(wrong), tmp_path)
    assert message.startswith(f"cannot download {server.archive().url}: MD5 hash of downloaded")
    assert MD5 in message
    assert message.endswith(REMEDY)
    assert left(tmp_path) == []


def test_a_refusal_is_named(server: Server, tmp_path: Path) -> None:
    server.statuses = [404] * 2
    message = refusal(server.archive(), tmp_path)
    assert message.startswith(f"cannot download {server.archive().url}: 404 Client Error")
    assert message.endswith(REMEDY)


def test_a_server_that_is_not_there_is_named(server: Server, tmp_path: Path) -> None:
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


def test_a_folder_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal(server.archive(), tmp_path / "file")
    assert f"cannot write {tmp_path / 'file' / 'a.zip'} (" in message
    assert "make room on the disk or choose another folder" in message
