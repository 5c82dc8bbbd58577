"""Files that are whole or absent, whatever happens while they are written, and JSON without NaN."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from gradshare.errors import RunError

UNFINISHED = ".unfinished"
"""The end of the name of a file that is being written."""


def _nan_for_null(value: Any) -> Any:
    return math.nan if value is None else value


Number = Annotated[float, BeforeValidator(_nan_for_null)]
"""A float that pydantic reads from JSON as NaN where `null_where_not_finite` wrote null."""


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn an OSError into a RunError that names `place`."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{place} cannot be written: {error.strerror or error}; free space there, or choose "
            "another output folder (--out)"
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file durably: after a crash it has the old content or the new one, never a part.

    Raises:
        RunError: it cannot be written. The old file is untouched.
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
    """Make a folder and its parents, unless they exist.

    Raises:
        RunError: it cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def null_where_not_finite(value: Any) -> Any:
    """The same JSON value with null for NaN and infinity, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: null_where_not_finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [null_where_not_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
