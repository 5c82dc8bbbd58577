"""Writing a file so that it is whole or not there, whatever happens meanwhile, and valid JSON."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradshare.errors import RunError

UNFINISHED = ".unfinished"
"""How the name of a file ends that is not whole yet."""


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Say of what fails in here that this file or folder cannot be written.

    Raises:
        RunError: for any `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{place} cannot be written: {error.strerror or error}; free the space or choose "
            "another output folder"
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file, durably: after a crash it has the old content or the new, never a part.

    Raises:
        RunError: it cannot be written; what was there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                # Without this a power cut could keep the new name and lose the new content.
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a new name durable, where the system can: Windows and some network disks can't."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        RunError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder}: the folder cannot be made: {error.strerror or error}; choose another "
            "output folder"
        ) from error


def write_pages(folder: Path, pages: Mapping[str, str]) -> list[Path]:
    """Write texts under their names into a folder, which is made if it is not there.

    Returns:
        What was written.

    Raises:
        RunError: it cannot be written.
    """
    make_folder(folder)
    for name, text in pages.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in pages]


def null_where_not_finite(value: Any) -> Any:
    """The same JSON value with null, which JSON has, for NaN and infinity, which it has not."""
    if isinstance(value, Mapping):
        return {key: null_where_not_finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [null_where_not_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
