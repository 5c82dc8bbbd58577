"""Keeping a copy of a run's folder on a machine that does not see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gradshare.training.files import UNFINISHED, write_atomically, writing
from gradshare.training.lock import LOCK

_Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Bundle:
    """What to do to a folder to make it like another.

    Attributes:
        written: the content of new and changed files, by the path below the folder.
        removed: files that are no longer there.
    """

    written: dict[str, bytes]
    removed: frozenset[str]


class Mirror:
    """Finds what changed in a folder since it was asked last; nobody may be writing meanwhile.

    Args:
        folder: may not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, _Stamp] = {}

    def changes(self) -> Bundle:
        """Everything at first, then what changed since."""
        now = {
            path.relative_to(self._folder).as_posix(): _stamp(path)
            for path in self._folder.rglob("*")
            if path.is_file() and path.name != LOCK and not path.name.endswith(UNFINISHED)
        }
        changed = [name for name, stamp in now.items() if self._seen.get(name) != stamp]
        removed = frozenset(self._seen.keys() - now.keys())
        self._seen = now
        return Bundle({name: (self._folder / name).read_bytes() for name in changed}, removed)


def apply(bundle: Bundle, folder: Path) -> None:
    """Make a folder like the one that a bundle is from.

    Raises:
        RunError: it cannot be written.
    """
    with writing(folder):
        for name, content in bundle.written.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        # Last, so that whenever this is cut short there is a moment to continue from.
        for name in bundle.removed:
            (folder / name).unlink(missing_ok=True)


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino
