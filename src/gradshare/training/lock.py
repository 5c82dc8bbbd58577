"""One process at a time in a folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gradshare.errors import RunError
from gradshare.training.files import make_folder, writing

LOCK = ".lock"


@contextmanager
def locked(folder: Path, *, doing: str, seconds: float = 0) -> Iterator[Callable[[], None]]:
    """Make a folder unless it exists, and keep other processes out until the end of the block.

    The lock ends with the process that holds it. On a disk without `flock` the lock is the mere
    existence of the file, which a killed process leaves behind. The function that it yields takes
    the lock again if somebody has deleted the file, and raises RunError if another process has
    taken it since.

    Args:
        doing: what its users do there, for the message: "training" or "comparing".
        seconds: how long to wait for another process.

    Raises:
        RunError: another process holds the lock, or the folder cannot be written.
    """
    path = folder / LOCK
    lock = FileLock(path, timeout=seconds)
    file = 0

    def acquire() -> None:
        nonlocal file
        with writing(folder):
            try:
                lock.acquire()
            except Timeout as error:
                raise RunError(
                    f"another process is {doing} in {folder}{_holder(path)}; wait for it, or "
                    "choose another folder (--out)"
                ) from error
            file = path.stat().st_ino

    def keep() -> None:
        if not path.exists():
            lock.release()
            acquire()
        elif path.stat().st_ino != file:
            raise RunError(
                f"{path} was deleted while this process was {doing}, and another process is "
                f"{doing} there now; wait for it, and continue with resume='auto' (--resume auto)"
            )

    make_folder(folder)
    acquire()
    try:
        yield keep
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a folder."""
    path = folder / LOCK
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # no process can write there, so none trains there
        return False


def _holder(path: Path) -> str:
    """The process and host that a lock file names where there is no `flock`; empty elsewhere."""
    try:
        process, host, *_ = path.read_text(encoding="utf-8").split()
        minutes = (time.time() - path.stat().st_mtime) / 60
    except (OSError, ValueError):
        return ""
    age = f"for {minutes:.0f} minutes"
    return f" (process {process} on {host}, {age}; if it was killed, delete {path})"
