"""Unpacking archives that may be damaged or hostile."""

from __future__ import annotations

import errno
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Self

from gradshare.errors import DataError, some
from gradshare.tasks.images import EXTENSIONS
from gradshare.tasks.readers.files import refuse_web_page

# The largest archive of the datasets that are read, full-size mini-ImageNet, holds 10 GB. Images
# hardly compress.
MAX_FILE_BYTES = 64 << 20
MAX_TOTAL_BYTES = 64 << 30
MAX_RATIO = 100
MAX_NAME_BYTES = 1 << 20
RATIO_MATTERS_FROM = 32 << 20  # a few blank images may compress by any factor

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
UNPACKED = (*EXTENSIONS, ".csv", ".json")
"""Files with other endings are left in the archive."""

_File = tuple[str, int, Callable[[], bytes]]
"""A file of an archive: its name, its size in bytes, and a function that reads it."""

_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, ValueError, NotImplementedError),
)


def unpacked(path: Path, scratch: Path, *, everything: bool = False) -> Path:
    """The folder at a path, or the folder in `scratch` that the archive there is unpacked into.

    An archive is zip or tar (plain, gzip, bzip2 or xz), whatever its name. Its images, tables and
    lists are unpacked, or everything.

    Raises:
        DataError: the archive is missing, damaged, truncated, encrypted or a web page; it holds a
            link, two files of one name or a name that leads out of it; or it is larger than the
            limits at the head of this module.
    """
    if path.is_dir():
        return path
    if not path.is_file():
        raise DataError(f"there is no file or folder {path}; check the path")
    refuse_web_page(path, "an archive")
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    folder = scratch / path.name
    folder.mkdir(parents=True)
    total = 0
    try:
        for name, size, read in (_zip_files if is_zip else _tar_files)(path):
            total += size
            _require_no_bomb(path, total)
            target = folder / _safe_name(name, path)
            # macOS adds this folder to zip archives.
            known = everything or target.suffix.lower() in UNPACKED
            if not known or "__MACOSX" in target.parts:
                continue
            if size > MAX_FILE_BYTES:
                limit = f"the limit is {MAX_FILE_BYTES:,}"
                raise _refused(path, f"{name!r} has {size:,} bytes, {limit}")
            if target.exists():
                raise _refused(path, f"it holds two files of the name {name!r}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(read())
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # of the disk
            raise
        raise DataError(
            f"{path} is damaged or cut off ({error}); download it again, or unpack it yourself and "
            "pass the folder"
        ) from error
    return folder


def find_archive(folder: Path, stem: str) -> Path | None:
    """The folder or archive of a name in a folder: `images`, `images.tar`, `images.zip`, …"""
    candidates = [folder / stem, *(folder / (stem + suffix) for suffix in SUFFIXES)]
    return next((path for path in candidates if path.exists()), None)


def listing(folder: Path, most: int = 12) -> str:
    """What is in a folder, for an error: the first entries by name, folders with a slash."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in entries)
    return some(names, most) or "nothing"


def _zip_files(path: Path) -> Iterator[_File]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                raise _refused(path, f"{info.filename!r} is a link")
            # Only of these methods does zipfile bound the memory.
            if info.flag_bits & 1 or info.compress_type not in (0, zipfile.ZIP_DEFLATED):
                raise _refused(path, f"{info.filename!r} is encrypted or not compressed by deflate")
            yield info.filename, info.file_size, partial(archive.read, info)


def _tar_files(path: Path) -> Iterator[_File]:
    try:
        archive = tarfile.open(path, tarinfo=_StrictHeader)  # noqa: SIM115 (closed below)
    except tarfile.ReadError as error:
        raise DataError(
            f"{path} is not a tar or zip archive, or is cut off; download it again, or unpack it "
            "and pass the folder"
        ) from error
    with archive:
        for header in archive:
            if header.isdir():
                continue
            if not header.isreg() or header.issparse():
                raise _refused(path, f"{header.name!r} is a link or a device")
            yield header.name, header.size, partial(_content, archive, header)
        # The checksum of a compressed archive comes after the last file.
        rest = archive.offset
        while archive.fileobj and (read := len(archive.fileobj.read(1 << 20))):
            rest += read
            _require_no_bomb(path, rest)


def _content(archive: tarfile.TarFile, header: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(header)
    content = file.read() if file else b""
    if len(content) != header.size:
        raise tarfile.ReadError(f"{header.name} ends too early")
    return content


class _StrictHeader(tarfile.TarInfo):
    """A header whose damage is an error. tarfile takes it for the end of the archive."""

    __slots__ = ()

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if buf == bytes(tarfile.BLOCKSIZE):
            return super().frombuf(buf, encoding, errors)  # raises what means the end
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} where a file or the end should be") from error
        is_file = header.type in tarfile.REGULAR_TYPES
        if header.size < 0 or (header.size > MAX_NAME_BYTES and not is_file):
            # tarfile would read the content of such a header, a long name, at once.
            raise tarfile.ReadError(f"a header says {header.size} bytes")
        return header


def _safe_name(name: str, path: Path) -> PurePosixPath:
    """The name of a file in an archive as a relative path that stays inside."""
    safe = PurePosixPath(name.replace("\\", "/"))
    has_drive = safe.parts and ":" in safe.parts[0]
    if not safe.parts or safe.is_absolute() or has_drive or ".." in safe.parts or "\0" in name:
        raise _refused(path, f"the name {name!r} leads out of it")
    return safe


def _require_no_bomb(path: Path, size: int) -> None:
    limit = max(MAX_RATIO * path.stat().st_size, RATIO_MATTERS_FROM)
    if size > min(limit, MAX_TOTAL_BYTES):
        raise _refused(path, f"it unpacks to more than {min(limit, MAX_TOTAL_BYTES):,} bytes")


def _refused(path: Path, cause: str) -> DataError:
    return DataError(
        f"{path} cannot be trusted: {cause}; get it from its publisher, or unpack it yourself and "
        "pass the folder"
    )
