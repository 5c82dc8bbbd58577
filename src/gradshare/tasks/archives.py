"""Reading datasets from archives that may be damaged or hostile.

`members` streams the files of a tar archive, of a zip archive or of a folder as bytes, one at a
time and in one pass. Nothing is extracted to disk, so no file name in an archive can reach a path
of this machine; names are checked all the same, since readers make class names of them.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, Self, cast

from gradshare.errors import DataError
from gradshare.tasks.web_page import is_web_page, web_page_error

# What decides between a large archive and a decompression bomb. The largest archive that the
# datasets come in (mini-ImageNet's full-size images) holds about 10 GB; a photograph of the
# 100 megapixels that `read_image` accepts is about 50 MB; images hardly compress at all.
MAX_MEMBER_BYTES = 64 << 20
MAX_TOTAL_BYTES = 64 << 30
MAX_RATIO = 100
RATIO_MATTERS_FROM = 32 << 20  # a few blank images may compress by any factor
MAX_TAR_HEADER_BYTES = 1 << 20  # long names and extended attributes, which tarfile holds in memory

# What operating systems leave in archives and folders beside the data.
_LITTER_FOLDERS = ("__MACOSX",)
_LITTER_FILES = (".DS_Store", "Thumbs.db", "desktop.ini")

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Member:
    """A file of an archive or folder.

    Attributes:
        name: its path within the archive or folder, without "." and "..".
        data: its bytes.
        where: how an error names it, with the path of the archive or folder.
    """

    name: PurePosixPath
    data: bytes
    where: str


def members(
    path: Path, wanted: Callable[[PurePosixPath], bool] = lambda _name: True
) -> Iterator[Member]:
    """Iterate over the files of an archive or a folder, in one pass, without extracting.

    Args:
        path: a tar archive (plain, gzip, bzip2 or xz), a zip archive, or a folder. What an
            archive is shows in its first bytes; its name does not matter.
        wanted: which files to read, by name; the others are skipped without being held in memory.

    Yields:
        The files: of a folder sorted by name, of an archive in its own order. What operating
        systems add (`.DS_Store`, `__MACOSX` and the like) is left out.

    Raises:
        DataError: no such path; not an archive, or a web page in its place; damaged, truncated
            or encrypted; a name that is absolute or leaves the archive by ".."; a link, a device
            or anything else that is neither file nor folder; two files of one name; more bytes
            than the limits at the head of this module.
    """
    if path.is_dir():
        found = _folder_members(path, wanted)
    else:
        kind = _kind(path)
        found = _zip_members(path, wanted) if kind == "zip" else _tar_members(path, wanted, kind)
    seen: set[PurePosixPath] = set()
    for member in found:
        if member.name in seen:
            raise DataError(
                f"{path} holds two files of the name {str(member.name)!r}; "
                "unpack it, keep the right one and pass the folder"
            )
        seen.add(member.name)
        yield member


def safe_name(name: str, archive: Path) -> PurePosixPath:
    """The name of an archive's member as a relative path that stays inside.

    Args:
        name: as it stands in the archive. A backslash separates folders, as it does on Windows.
        archive: for the error.

    Raises:
        DataError: an absolute name, one with a drive letter, with ".." or with a NUL, or empty.
    """
    unified = name.replace("\\", "/")
    parts = [part for part in unified.split("/") if part not in ("", ".")]
    has_drive = len(unified) > 1 and unified[1] == ":" and unified[0].isalpha()
    if not parts or unified.startswith("/") or has_drive or ".." in parts or "\0" in unified:
        raise DataError(
            f"{archive} has a member of the unsafe name {name!r}, which points outside the "
            "archive; get the archive from its publisher"
        )
    return PurePosixPath(*parts)


def find_archive(folder: Path, stem: str) -> Path | None:
    """The folder or archive of a given name in a folder: `images`, `images.tar`, `images.zip`, …

    The unpacked folder is preferred: it needs no pass through the whole archive.
    """
    candidates = [folder / stem, *(folder / (stem + suffix) for suffix in ARCHIVE_SUFFIXES)]
    return next((path for path in candidates if path.is_dir() or path.is_file()), None)


def listing(folder: Path, most: int = 12) -> str:
    """What is in a folder, for an error: its first entries by name, folders with a slash."""
    found = sorted(
        entry.name + ("/" if entry.is_dir() else "")
        for entry in folder.iterdir()
        if not _is_litter(PurePosixPath(entry.name))
    )
    if not found:
        return "nothing"
    rest = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + rest


def is_image(name: PurePosixPath) -> bool:
    """Whether a file's name ends as that of an image of the datasets does."""
    return name.suffix.lower() in IMAGE_SUFFIXES


def _is_root(name: str) -> bool:
    """Whether a member is the archive's own root, as in `tar c .`."""
    return name in (".", "./")


def _is_litter(name: PurePosixPath) -> bool:
    return (
        name.name in _LITTER_FILES
        or name.name.startswith("._")
        or any(part in _LITTER_FOLDERS for part in name.parts)
    )


def _kind(path: Path) -> str:
    """What an archive is: "zip", or a tar compressed by nothing (""), "gz", "bz2" or "xz"."""
    if not path.exists():
        raise DataError(f"there is no {path}; check the path")
    if not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder; pass an archive or a folder")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not head:
        raise DataError(f"{path} is empty; download it again")
    if is_web_page(head):
        raise web_page_error(path, "an archive")
    magics = {b"PK\3\4": "zip", b"PK\5\6": "zip", b"\x1f\x8b": "gz", b"BZh": "bz2"}
    for magic, kind in (magics | {b"\xfd7zXZ\0": "xz"}).items():
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar" or not head.strip(b"\0"):
        return ""
    raise DataError(
        f"{path} is neither a tar nor a zip archive (it begins with {head[:8]!r}); "
        "download it again, or unpack it and pass the folder"
    )


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read ({error.strerror}); mend its permissions or remove it")


def _damaged(path: Path, cause: object) -> DataError:
    return DataError(
        f"{path} is damaged or truncated ({cause}); download it again, or unpack it with another "
        "program and pass the folder"
    )


def _too_large(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} looks like a decompression bomb: {what}; if you trust it, unpack it and pass "
        "the folder"
    )


def _bomb(path: Path, unpacked: int) -> str | None:
    """What makes `unpacked` bytes of an archive too many, if anything does."""
    if unpacked > MAX_TOTAL_BYTES:
        return f"it unpacks to more than {MAX_TOTAL_BYTES:,} bytes"
    packed = max(path.stat().st_size, 1)
    if unpacked > RATIO_MATTERS_FROM and unpacked > MAX_RATIO * packed:
        return f"its {packed:,} bytes unpack to more than {MAX_RATIO} times as many"
    return None


# Folders


def _folder_members(root: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[Member]:
    # Links are followed here, unlike in archives: who keeps data on another disk links to it.
    for name in _walk(root, PurePosixPath(), (root.resolve(),)):
        if not wanted(name):
            continue
        path = root / name
        size = path.stat().st_size
        if size > MAX_MEMBER_BYTES:
            raise DataError(
                f"{path} has {size:,} bytes, over the limit of {MAX_MEMBER_BYTES:,} for one "
                "image; remove it or make it smaller"
            )
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _unreadable(path, error) from error
        yield Member(name, data, str(path))


def _walk(root: Path, folder: PurePosixPath, parents: tuple[Path, ...]) -> Iterator[PurePosixPath]:
    """The files below root/folder, relative to root; `parents` are the resolved folders above."""
    try:
        entries = sorted((root / folder).iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(root / folder, error) from error
    for entry in entries:
        name = folder / entry.name
        if _is_litter(name):
            continue
        if entry.is_dir():
            resolved = entry.resolve()
            if resolved in parents:
                raise DataError(f"{entry} is a link to a folder that contains it; remove it")
            yield from _walk(root, name, (*parents, resolved))
        elif entry.is_file():
            yield name


# Zip


def _zip_members(path: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[Member]:
    damage = (
        zipfile.BadZipFile,  # no central directory, a wrong checksum
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        ValueError,  # a negative seek, an undecodable name
        NotImplementedError,  # a version of the format that zipfile does not know
    )
    try:
        archive = zipfile.ZipFile(path)
    except damage as error:
        raise _damaged(path, error) from error
    with archive:
        # The directory's own sizes can be relied on: no more than that is read of any member.
        bomb = _bomb(path, sum(info.file_size for info in archive.infolist()))
        if bomb:
            raise _too_large(path, bomb)
        for info in archive.infolist():
            if _is_root(info.filename):
                continue
            name = safe_name(info.filename, path)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _not_a_file(path, name)
            if info.is_dir() or _is_litter(name) or not wanted(name):
                continue
            if info.flag_bits & 1:
                raise DataError(
                    f"{name} in {path} is encrypted; unpack the archive with its password and "
                    "pass the folder"
                )
            # zipfile bounds the memory that a member takes for these two methods only.
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(
                    f"{name} in {path} is compressed by method {info.compress_type}, not by "
                    "deflate (8); unpack the archive and pass the folder"
                )
            if info.file_size > MAX_MEMBER_BYTES:
                raise _member_too_large(path, name, info.file_size)
            try:
                with archive.open(info) as file:
                    data = file.read(info.file_size)
            except damage as error:
                raise _damaged(path, f"{name}: {error}") from error
            if len(data) != info.file_size:
                raise _damaged(path, f"{name}: {len(data)} of {info.file_size} bytes")
            yield Member(name, data, f"{name} in {path}")


def _not_a_file(path: Path, name: PurePosixPath) -> DataError:
    return DataError(
        f"{path} holds {str(name)!r}, which is a link, a device or the like and not a file; "
        "unpack the archive, replace it by the file and pass the folder"
    )


def _member_too_large(path: Path, name: PurePosixPath, size: int) -> DataError:
    return _too_large(
        path, f"{name} has {size:,} bytes, over the limit of {MAX_MEMBER_BYTES:,} for one file"
    )


# Tar


class _StrictHeader(tarfile.TarInfo):
    """A tar header whose defects are errors.

    tarfile takes a damaged header in the middle of an archive, and a missing end mark, for the
    end of the archive: half a dataset would pass for the whole.
    """

    __slots__ = ()

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if buf == bytes(tarfile.BLOCKSIZE):
            return super().frombuf(buf, encoding, errors)  # raises what tells tarfile "the end"
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} where a file or the end mark should be") from error
        if header.size < 0:
            raise tarfile.ReadError("a file of negative size")
        extends_next = header.type in (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )
        if extends_next and header.size > MAX_TAR_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Metered:
    """The decompressed bytes of a tar archive, with an error once they are too many."""

    def __init__(self, path: Path, stream: _Readable) -> None:
        self.path = path
        self.stream = stream
        self.count = 0

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.count += len(data)
        bomb = _bomb(self.path, self.count)
        if bomb:
            raise _too_large(self.path, bomb)
        return data


def _decompressed(path: Path, compression: str) -> AbstractContextManager[_Readable]:
    openers: dict[str, Callable[[Path], AbstractContextManager[_Readable]]] = {
        "": lambda path: path.open("rb"),
        "gz": gzip.GzipFile,
        "bz2": bz2.BZ2File,
        "xz": lzma.LZMAFile,
    }
    return openers[compression](path)


def _tar_members(
    path: Path, wanted: Callable[[PurePosixPath], bool], compression: str
) -> Iterator[Member]:
    damage = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError)
    try:
        with _decompressed(path, compression) as stream:
            metered = _Metered(path, stream)
            readable = cast(IO[bytes], metered)  # tarfile only reads what it is told is a stream
            with tarfile.open(fileobj=readable, mode="r|", tarinfo=_StrictHeader) as archive:
                while (header := archive.next()) is not None:
                    member = _tar_member(archive, header, path, wanted)
                    if member:
                        yield member
            while metered.read(1 << 20):
                pass  # up to the checksum at the end of the compressed stream
    except damage as error:
        raise _damaged(path, error) from error


def _tar_member(
    archive: tarfile.TarFile,
    header: tarfile.TarInfo,
    path: Path,
    wanted: Callable[[PurePosixPath], bool],
) -> Member | None:
    if _is_root(header.name):
        return None
    name = safe_name(header.name, path)
    if header.isdir():
        return None
    if not header.isreg() or header.issparse():
        raise _not_a_file(path, name)
    if _is_litter(name) or not wanted(name):
        return None
    if header.size > MAX_MEMBER_BYTES:
        raise _member_too_large(path, name, header.size)
    file = archive.extractfile(header)
    data = file.read() if file else b""
    if len(data) != header.size:
        raise tarfile.ReadError(f"{name}: {len(data)} of {header.size} bytes")
    return Member(name, data, f"{name} in {path}")
