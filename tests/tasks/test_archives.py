"""Archives are unpacked whole or refused with a reason, and cannot reach outside themselves."""

from __future__ import annotations

import errno
import io
import re
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshare.errors import DataError
from gradshare.tasks.readers import archives
from gradshare.tasks.readers.archives import find_archive, listing, unpacked
from tests.tasks.archive_builders import COMPRESSORS, make_folder, make_tar, make_zip

FILES = {"b/2.png": b"two" * 300, "a/1.png": b"one", "a/table.csv": b""}
KINDS = [*COMPRESSORS, "zip"]
REMEDY = "; get it from its publisher, or unpack it yourself and pass the folder"


def make(folder: Path, kind: str, files: dict[str, bytes]) -> Path:
    maker = make_zip if kind == "zip" else make_tar
    return maker(folder / f"archive.{kind}", files)


def contents(path: Path) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = unpacked(path, Path(scratch))
        files = [file for file in folder.rglob("*") if file.is_file()]
        return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def refusal(path: Path) -> str:
    with tempfile.TemporaryDirectory() as outside:
        scratch = Path(outside) / "scratch"
        scratch.mkdir()
        with pytest.raises(DataError) as error:
            unpacked(path, scratch)
        assert [entry.name for entry in Path(outside).iterdir()] == ["scratch"]
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_tables_are_unpacked_and_nothing_else(tmp_path: Path, kind: str) -> None:
    beside = {"notes.txt": b"x", "__MACOSX/a/1.png": b"x", "a/tool.exe": b"x"}
    assert contents(make(tmp_path, kind, FILES | beside)) == FILES


def test_a_folder_stays_where_it_is(tmp_path: Path) -> None:
    assert unpacked(tmp_path, tmp_path / "scratch") == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_the_kind_shows_in_the_first_bytes_and_not_in_the_name(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "archive.zip", FILES).rename(tmp_path / "download.tgz")
    assert contents(path) == FILES


def test_an_archive_may_begin_with_its_own_root(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(make_folder(tmp_path / "files", FILES), ".")
    assert contents(tmp_path / "a.tar") == FILES


@pytest.mark.parametrize(
    "name",
    ["/etc/x.png", "../x.png", "a/../../x.png", "a\\..\\..\\x.png", "C:\\x.png", "\\x.png", ".."],
)
@pytest.mark.parametrize("maker", [make_tar, make_zip])
def test_a_name_that_leads_outside_is_refused(
    tmp_path: Path, maker: Callable[[Path, dict[str, bytes]], Path], name: str
) -> None:
    path = maker(tmp_path / "a.tar", {name: b"x"})
    assert f"{path} cannot be trusted: the name {name!r} leads out of it{REMEDY}" == refusal(path)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        header = tarfile.TarInfo("odd.png")
        header.type = kind
        header.linkname = "/etc/passwd"
        archive.addfile(header)
    assert f"{path} cannot be trusted: 'odd.png' is a link or a device{REMEDY}" == refusal(path)


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("odd.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert f"{path} cannot be trusted: 'odd.png' is a link{REMEDY}" == refusal(path)


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "zip"])
@pytest.mark.parametrize("name", ["bomb.txt", "bomb.png"])  # it need not even be unpacked
def test_a_decompression_bomb_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    path = make(tmp_path, kind, {name: bytes(archives.RATIO_MATTERS_FROM + 1)})
    assert f"{path} cannot be trusted: it unpacks to more than 33,554,432 bytes{REMEDY}" == (
        refusal(path)
    )


def test_a_bomb_after_the_last_file_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path, "tar.gz", FILES)
    zeros = COMPRESSORS["tar.gz"](bytes(archives.RATIO_MATTERS_FROM))
    path.write_bytes(path.read_bytes() + zeros)
    assert "it unpacks to more than 33,554,432 bytes" in refusal(path)


@pytest.mark.parametrize("kind", KINDS)
def test_limits_are_kept(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, kind, FILES)
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 899)
    assert "'b/2.png' has 900 bytes, the limit is 899" in refusal(path)
    monkeypatch.setattr(archives, "MAX_TOTAL_BYTES", 500)
    assert "it unpacks to more than 500 bytes" in refusal(path)


def test_a_zip_that_understates_a_size_is_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.png": bytes(100_000)})
    size = (100_000).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, (10).to_bytes(4, "little")))
    assert "is damaged or cut off (Bad CRC-32" in refusal(path)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (tarfile.REGTYPE, -512),
        # tarfile reads the content of such headers at once, and may fill the memory with it.
        (tarfile.GNUTYPE_LONGNAME, archives.MAX_NAME_BYTES + 1),
        (tarfile.XHDTYPE, archives.MAX_NAME_BYTES + 1),
    ],
)
def test_a_tar_header_of_an_impossible_size_is_refused(
    tmp_path: Path, kind: bytes, size: int
) -> None:
    header = tarfile.TarInfo("a.png")
    header.type, header.size = kind, size
    path = make_tar(tmp_path / "a.tar", {"1.png": b"x"})
    path.write_bytes(path.read_bytes()[:1024] + header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert f"is damaged or cut off (a header says {size} bytes)" in refusal(path)


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_is_cut_off_is_never_taken_for_a_whole_one(
    tmp_path: Path, kind: str
) -> None:
    whole = make(tmp_path, kind, FILES)
    data = whole.read_bytes()
    # The three files take six blocks of 512 bytes. After them come blocks of zeros, up to
    # 10,240 bytes, and the first of them is the end mark.
    needed = 7 * 512 if kind == "tar" else len(data)
    for length in range(0, needed, 61):
        cut = tmp_path / "cut"
        cut.write_bytes(data[:length])
        assert "download it again" in refusal(cut)


def test_a_damaged_tar_header_is_not_the_end(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", {"1.png": b"x", "2.png": b"y"})
    data = bytearray(path.read_bytes())
    data[1024] ^= 1  # the name in the second header
    path.write_bytes(data)
    assert (
        f"{path} is damaged or cut off (bad checksum where a file or the end should be); download "
        "it again, or unpack it yourself and pass the folder"
    ) == refusal(path)


def test_a_zip_that_is_encrypted_or_compressed_in_another_way_is_refused(tmp_path: Path) -> None:
    said = "'1.png' is encrypted or not compressed by deflate"
    path = make_zip(tmp_path / "a.zip", {"1.png": b"x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    assert said in refusal(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("1.png", b"x")
    assert said in refusal(path)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("a/1.png", "./a//1.png"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert "it holds two files of the name './a//1.png'" in refusal(path)


def test_a_full_disk_is_not_blamed_on_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("a.png", b"image")

    def fill_up(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_up)
    with pytest.raises(OSError, match="No space left on device"):
        unpacked(archive, tmp_path / "scratch")


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><p>404", b"\n <html>", b"\xef\xbb\xbf<HTML>"])
def test_a_web_page_is_named(tmp_path: Path, page: bytes) -> None:
    path = tmp_path / "CUB.tgz"
    path.write_bytes(page)
    assert (
        f"{path} is a web page, not an archive: the server answered with a web page (an error, a "
        "login or a confirmation) and it was saved under this name; delete it, download the file "
        "by hand in a browser and pass --from PATH"
    ) == refusal(path)


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    missing, text = tmp_path / "missing", tmp_path / "text"
    text.write_text("filename,label")
    assert f"there is no file or folder {missing}; check the path" == refusal(missing)
    assert (
        f"{text} is not a tar or zip archive, or is cut off; download it again, or unpack it and "
        "pass the folder"
    ) == refusal(text)


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
            contents(path)
        except DataError as error:
            assert re.search(r"; \w+", str(error))  # a remedy
        except OSError as error:  # of the disk, such as a name that is too long for it
            assert error.filename


def test_a_folder_or_an_archive_is_found_by_its_stem(tmp_path: Path) -> None:
    assert find_archive(tmp_path, "images") is None
    archive = make_zip(tmp_path / "images.zip", FILES)
    assert find_archive(tmp_path, "images") == archive
    (tmp_path / "images").mkdir()
    assert find_archive(tmp_path, "images") == tmp_path / "images"


def test_the_beginning_of_a_folder_is_listed(tmp_path: Path) -> None:
    assert listing(tmp_path) == "nothing"
    make_folder(tmp_path, {"c.txt": b"", "a/x": b"", "b.txt": b"", ".DS_Store": b""})
    assert listing(tmp_path) == "a/, b.txt, c.txt"
    assert listing(tmp_path, most=2) == "a/, b.txt and 1 more"
