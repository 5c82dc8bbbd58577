"""Downloading a dataset's archives: resumable, verified, and never a web page in their place."""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gradshare.errors import DataError
from gradshare.tasks.dataset import Archive
from gradshare.tasks.web_page import is_web_page

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 16
TIMEOUT_SECONDS = 30.0  # without a single byte
PAUSES_SECONDS = (1.0, 2.0, 5.0)  # before each further attempt that follows one without progress

# Answers after which the same request may succeed later.
_PASSING_STATUSES = frozenset((408, 425, 429, 500, 502, 503, 504))
_RANGE_NOT_SATISFIABLE = 416
_PARTIAL_CONTENT = 206

OnProgress = Callable[[int, int | None], None]
"""Called with how much is done and how much there is in all, None where that is not known."""


def download(archive: Archive, folder: Path, progress: OnProgress | None = None) -> Path:
    """Fetch an archive into a folder, unless it is there already.

    The bytes go to `<filename>.part` beside the target, which takes its name only when it is
    complete and its checksum is right. An interrupted download resumes where it stopped, in this
    call (a dropped connection, a timeout, a busy server) or the next (Ctrl-C, a crash), as long as
    the server still has the same file; otherwise it starts over. Of several processes that fetch
    the same archive into a folder at once, one does and the others wait for it.

    Args:
        archive: what to fetch.
        folder: where to; created when missing.
        progress: called with the bytes so far and the bytes in all (None: unknown) as they come.

    Returns:
        The path of the complete file.

    Raises:
        DataError: the server cannot be reached, refuses, or answers with a web page; the checksum
            is not the published one; or the disk cannot be written to.
    """
    target = folder / archive.filename
    if target.exists():
        return _verified(target, archive)
    part_path = folder / (archive.filename + ".part")
    report = progress or (lambda _done, _total: None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / (archive.filename + ".lock"), target):
            fetched_by_another = target.exists()
            if not fetched_by_another:
                part = _Part(part_path)
                _complete(part, archive, report)
                part.path.replace(target)
                part.note.unlink(missing_ok=True)
    except OSError as error:  # the network's errors are DataErrors by now
        raise DataError(
            f"cannot write {part_path} ({error.strerror or error}); "
            "make room on the disk or choose another folder"
        ) from error
    return _verified(target, archive) if fetched_by_another else target


@contextmanager
def _alone(path: Path, target: Path) -> Iterator[None]:
    """Be the only process that fetches a target, waiting for one that does."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("another process is downloading %s; waiting for it", target)
        lock.acquire()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: who waits for it looks for it anew
        lock.release()


def _complete(part: _Part, archive: Archive, report: OnProgress) -> None:
    """Fetch what is missing of an archive, and check it."""
    _fetch(archive, part, report)
    found = md5(part.path)
    if archive.md5 and found != archive.md5 and part.from_earlier_call:
        part.discard()  # what was there before was the beginning of another file
        _fetch(archive, part, report)
        found = md5(part.path)
    if archive.md5 and found != archive.md5:
        part.discard()
        raise _failed(
            archive,
            f"its md5 is {found} and not the published {archive.md5}, so it was changed or "
            "damaged on its way",
        )


def md5(path: Path) -> str:
    """The MD5 checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _verified(target: Path, archive: Archive) -> Path:
    if not target.is_file():
        raise DataError(f"{target} is in the way of the download and is no file; move it away")
    with target.open("rb") as file:
        head = file.read(512)
    wrong = None
    if is_web_page(head):
        wrong = "is a web page"
    elif not head:
        wrong = "is empty"
    elif archive.md5 and (found := md5(target)) != archive.md5:
        wrong = f"has the md5 {found}, the published file {archive.md5}"
    if wrong:
        raise DataError(
            f"{target} {wrong}; delete it to download it again, or pass --from PATH if you mean "
            "to use it as it is"
        )
    return target


def _failed(archive: Archive, cause: object) -> DataError:
    return DataError(
        f"cannot download {archive.url}: {cause}; try again later, or download it by hand and "
        "pass --from PATH"
    )


class _Part:
    """An unfinished download on disk, and which version of the remote file it is a part of.

    Attributes:
        path: the bytes so far.
        note: a JSON file beside it with the URL and the version.
        from_earlier_call: whether it still begins with bytes that were there before this call.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.note = path.with_name(path.name + ".json")
        self.from_earlier_call = self.size() > 0

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self, url: str) -> str | None:
        """What `_version` gave for the bytes on disk, if they are from this URL."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            return str(note["version"]) if note["url"] == url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def begin(self, url: str, version: str | None) -> None:
        """Empty it, for a given version of the file at a URL."""
        self.discard()
        if version is not None:
            self.note.write_text(json.dumps({"url": url, "version": version}), encoding="utf-8")
        self.path.touch()

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self.from_earlier_call = False


class _PassingError(Exception):
    """What went wrong with one attempt and may go right with the next."""


def _fetch(archive: Archive, part: _Part, report: OnProgress) -> None:
    """Make the part complete, in as many attempts as bring it forward."""
    most = part.size()
    pauses = iter(PAUSES_SECONDS)
    while True:
        try:
            _attempt(archive, part, report)
        except _PassingError as error:
            if part.size() > most:
                most = part.size()
                pauses = iter(PAUSES_SECONDS)
            pause = next(pauses, None)
            if pause is None:
                raise _failed(archive, error) from error
            time.sleep(pause)
        else:
            return


def _attempt(archive: Archive, part: _Part, report: OnProgress) -> None:
    """One request, for what is missing of the part."""
    version = part.version(archive.url)
    if version is None and archive.md5 is None:
        part.discard()  # nothing could tell whether the rest belongs to the same file
    start = part.size()
    request = urllib.request.Request(
        archive.url, headers={"User-Agent": "gradshare", "Accept-Encoding": "identity"}
    )
    if start:
        request.add_header("Range", f"bytes={start}-")
        if version is not None:
            request.add_header("If-Range", version)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == _RANGE_NOT_SATISFIABLE and start:
                if error.headers.get("Content-Range", "").endswith(f"/{start}"):
                    return  # there is nothing after what is here
                part.discard()
                raise _PassingError("the server has less of it than is here") from error
            answer = f"the server answered {error.code} {error.reason}"
            if error.code in _PASSING_STATUSES:
                raise _PassingError(answer) from error
            raise _failed(archive, answer) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise _failed(archive, f"its certificate is not valid ({error.reason})") from error
        raise _PassingError(error.reason) from error
    except (OSError, http.client.HTTPException) as error:
        raise _broken(error) from error
    with response:
        _receive(response, archive, part, report)


def _receive(
    response: http.client.HTTPResponse, archive: Archive, part: _Part, report: OnProgress
) -> None:
    if response.headers.get_content_type() == "text/html":
        raise _web_page(archive)
    first = _read(response)
    total: int | None
    if response.status == _PARTIAL_CONTENT:
        start, total = _content_range(response)
        if start != part.size():
            part.discard()
            raise _PassingError("the server sent another part of the file than it was asked for")
    else:
        if is_web_page(first):
            raise _web_page(archive)
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        part.begin(archive.url, _version(response))
    done = part.size()
    with part.path.open("ab") as file:
        chunk = first
        while chunk:
            file.write(chunk)
            done += len(chunk)
            report(done, total)
            chunk = _read(response)
    if total is not None and done < total:
        raise _PassingError(f"the connection ended after {done:,} of {total:,} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _broken(error) from error


def _broken(error: Exception) -> _PassingError:
    return _PassingError(f"the connection broke ({str(error) or type(error).__name__})")


def _web_page(archive: Archive) -> DataError:
    return _failed(archive, "the server answered with a web page instead of the file")


def _content_range(response: http.client.HTTPResponse) -> tuple[int | None, int | None]:
    """The first byte's position and the file's size of a partial answer, where it says them."""
    match = re.fullmatch(
        r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip()
    )
    if not match:
        return None, None
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _version(response: http.client.HTTPResponse) -> str | None:
    """What identifies the bytes of a remote file for If-Range: a strong ETag, or its date."""
    etag: str | None = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    return response.headers.get("Last-Modified")
