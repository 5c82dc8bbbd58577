"""Archives are read whole or refused with a reason, and cannot reach outside themselves."""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshare.errors import DataError
from gradshare.tasks import archives
from gradshare.tasks.archives import find_archive, listing, members, safe_name
from tests.tasks.archive_builders import COMPRESSORS, make_folder, make_tar, make_zip

FILES = {"b/2.png": b"two" * 300, "a/1.png": b"one", "a/notes.txt": b""}
KINDS = [*COMPRESSORS, "zip", "folder"]


def make(folder: Path, kind: str, files: dict[str, bytes]) -> Path:
    if kind == "folder":
        return make_folder(folder / "archive", files)
    maker = make_zip if kind == "zip" else make_tar
    return maker(folder / f"archive.{kind}", files)


def contents(path: Path) -> dict[str, bytes]:
    return {str(member.name): member.data for member in members(path)}


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as error:
        list(members(path))
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_reads_every_file_of_every_kind(tmp_path: Path, kind: str) -> None:
    assert contents(make(tmp_path, kind, FILES)) == FILES


@pytest.mark.parametrize("kind", KINDS)
def test_reads_nothing_but_what_is_wanted(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path, kind, FILES)
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 10)  # b/2.png is over it
    found = list(members(path, lambda name: name.name == "1.png"))
    assert [(str(member.name), member.data) for member in found] == [("a/1.png", b"one")]
    assert str(path) in found[0].where
    assert "1.png" in found[0].where


@pytest.mark.parametrize("kind", KINDS)
def test_leaves_out_what_operating_systems_add(tmp_path: Path, kind: str) -> None:
    litter = ("a/.DS_Store", "a/._1.png", "__MACOSX/a/1.png", "a/Thumbs.db")
    path = make(tmp_path, kind, FILES | dict.fromkeys(litter, b"x"))
    assert contents(path) == FILES


@pytest.mark.parametrize("kind", KINDS)
def test_refuses_a_file_over_the_limit(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path, kind, FILES)
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 899)
    message = refusal(path)
    assert "2.png" in message
    assert "900 bytes, over the limit of 899" in message
    assert str(path) in message


def test_the_kind_shows_in_the_first_bytes_not_in_the_name(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "archive.zip", FILES).rename(tmp_path / "download.tgz")
    assert contents(path) == FILES


def test_an_archive_may_begin_with_its_own_root(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(make_folder(tmp_path / "files", FILES), ".")
    assert contents(tmp_path / "a.tar") == FILES


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "a/../../x", "a\\..\\..\\x", "C:\\x", "c:x", "\\x", "//x", ".."]
)
@pytest.mark.parametrize("maker", [make_tar, make_zip])
def test_refuses_unsafe_names(
    tmp_path: Path, maker: Callable[[Path, dict[str, bytes]], Path], name: str
) -> None:
    path = maker(tmp_path / "a.tar", {name: b"x"})
    message = refusal(path)
    assert f"{path} has a member of the unsafe name" in message
    assert "get the archive from its publisher" in message


@given(st.text() | st.lists(st.sampled_from(["..", ".", "", "a", "C:", "\\", "\0"])).map("/".join))
def test_safe_names_stay_inside(name: str) -> None:
    try:
        safe = safe_name(name, Path("a.zip"))
    except DataError:
        return
    assert not safe.is_absolute()
    assert safe.parts
    assert not {"..", "."} & set(safe.parts)
    assert not any("\\" in part or "\0" in part for part in safe.parts)
    joined = os.path.normpath(Path("/root") / safe)
    assert joined.startswith("/root/")


@given(st.lists(st.from_regex(r"[a-zA-Z0-9_ .-]{1,8}", fullmatch=True), min_size=1, max_size=4))
def test_ordinary_names_are_kept(parts: list[str]) -> None:
    if any(set(part) == {"."} for part in parts):
        return
    assert safe_name("/".join(parts), Path("a.zip")) == PurePosixPath(*parts)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_refuses_links_and_devices_in_a_tar(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        header = tarfile.TarInfo("odd.png")
        header.type = kind
        header.linkname = "/etc/passwd"
        archive.addfile(header)
    message = refusal(path)
    assert f"{path} holds 'odd.png', which is a link, a device or the like" in message
    assert "pass the folder" in message


def test_refuses_a_link_in_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("odd.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert "'odd.png', which is a link" in refusal(path)


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "zip"])
def test_refuses_a_decompression_bomb(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, kind, {"bomb.txt": bytes(archives.RATIO_MATTERS_FROM + 1)})
    with pytest.raises(DataError) as error:
        list(members(path, lambda _name: False))  # it need not even be wanted
    assert f"{path} looks like a decompression bomb" in str(error.value)
    assert f"unpack to more than {archives.MAX_RATIO} times as many" in str(error.value)
    assert "if you trust it, unpack it and pass the folder" in str(error.value)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_refuses_more_bytes_than_the_total(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path, kind, FILES)
    monkeypatch.setattr(archives, "MAX_TOTAL_BYTES", 500)
    assert "it unpacks to more than 500 bytes" in refusal(path)


def test_refuses_a_zip_that_understates_a_size(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.png": bytes(100_000)})
    size = (100_000).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, (10).to_bytes(4, "little")))
    assert "is damaged or truncated (a.png: Bad CRC-32" in refusal(path)


def test_refuses_a_tar_header_that_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        header = tarfile.TarInfo("a.png")
        header.pax_headers = {"comment": "x" * (archives.MAX_TAR_HEADER_BYTES + 1)}
        archive.addfile(header)
    assert "is damaged or truncated (a header of 1,048," in refusal(path)


def test_refuses_a_tar_member_of_negative_size(tmp_path: Path) -> None:
    header = tarfile.TarInfo("a.png")
    header.size = -512
    path = tmp_path / "a.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert "is damaged or truncated (a file of negative size)" in refusal(path)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_a_truncated_archive_is_never_taken_for_a_whole_one(tmp_path: Path, kind: str) -> None:
    whole = make(tmp_path, kind, FILES)
    data = whole.read_bytes()
    # The three files take six blocks of 512 bytes. After them come blocks of zeros, up to
    # 10,240 bytes, and the first of them is the end mark.
    needed = 7 * 512 if kind == "tar" else len(data)
    for length in range(1, needed, 7):
        cut = tmp_path / "cut"
        cut.write_bytes(data[:length])
        message = refusal(cut)
        assert str(cut) in message
        assert "download it again" in message


def test_a_damaged_tar_header_is_not_the_end(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {"1.png": b"x", "2.png": b"y"})
    data = bytearray(path.read_bytes())
    data[1024] ^= 1  # the name in the second header
    path.write_bytes(data)
    assert (
        f"{path} is damaged or truncated (bad checksum where a file or the end mark should be); "
        "download it again, or unpack it with another program and pass the folder"
    ) == refusal(path)


def test_refuses_an_encrypted_zip(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"1.png": b"x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    assert (
        f"1.png in {path} is encrypted; unpack the archive with its password and pass the folder"
        == refusal(path)
    )


def test_refuses_a_zip_compressed_by_an_unbounded_method(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("1.png", b"x")
    assert f"1.png in {path} is compressed by method 12, not by deflate" in refusal(path)


def test_refuses_two_files_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("a/1.png", "./a//1.png"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert f"{path} holds two files of the name 'a/1.png'" in refusal(path)


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><p>404", b"\n <html>", b"\xef\xbb\xbf<HTML>"])
def test_names_a_web_page(tmp_path: Path, page: bytes) -> None:
    path = tmp_path / "CUB.tgz"
    path.write_bytes(page)
    assert (
        f"{path} is a web page, not an archive: the server answered with a web page (an error, a "
        "login or a confirmation) and it was saved under this name; delete it, download the file "
        "by hand in a browser and pass --from PATH"
    ) == refusal(path)


def test_names_what_is_no_archive(tmp_path: Path) -> None:
    missing, empty, text = tmp_path / "missing", tmp_path / "empty", tmp_path / "text"
    empty.touch()
    text.write_text("filename,label")
    assert f"there is no {missing}; check the path" == refusal(missing)
    assert f"{empty} is empty; download it again" == refusal(empty)
    assert f"{text} is neither a tar nor a zip archive (it begins with b'filename')" in refusal(
        text
    )


def test_follows_links_in_a_folder_but_not_in_circles(tmp_path: Path) -> None:
    elsewhere = make_folder(tmp_path / "elsewhere", FILES)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "images").symlink_to(elsewhere)
    assert contents(folder) == {f"images/{name}": data for name, data in FILES.items()}
    (elsewhere / "circle").symlink_to(folder)
    assert "is a link to a folder that contains it; remove it" in refusal(folder)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
@settings(max_examples=100, deadline=None)
@given(random=st.randoms(use_true_random=False))
def test_damage_never_shows_as_anything_but_a_data_error(kind: str, random: Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = make(Path(folder), kind, FILES)
        data = bytearray(path.read_bytes())
        for _ in range(random.randint(1, 4)):
            data[random.randrange(min(len(data), 4096))] = random.randrange(256)
        path.write_bytes(data)
        try:
            list(members(path))
        except DataError as error:
            assert re.search(r"; \w+", str(error))  # a remedy


def test_finds_a_folder_or_an_archive_by_its_stem(tmp_path: Path) -> None:
    assert find_archive(tmp_path, "images") is None
    archive = make_zip(tmp_path / "images.zip", FILES)
    assert find_archive(tmp_path, "images") == archive
    (tmp_path / "images").mkdir()
    assert find_archive(tmp_path, "images") == tmp_path / "images"


def test_lists_the_beginning_of_a_folder(tmp_path: Path) -> None:
    assert listing(tmp_path) == "nothing"
    make_folder(tmp_path, {"c.txt": b"", "a/x": b"", "b.txt": b"", ".DS_Store": b""})
    assert listing(tmp_path) == "a/, b.txt, c.txt"
    assert listing(tmp_path, most=2) == "a/, b.txt and 1 more"
