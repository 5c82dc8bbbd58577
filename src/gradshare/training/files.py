"""Files that are whole or absent, whatever happens while they are written, and JSON whose edits are
noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from gradshare.errors import RunError, reason

UNFINISHED = ".unfinished"
"""The end of the name of a file that is being written."""


def _nan_for_null(value: Any) -> Any:
    return math.nan if value is None else value


Number = Annotated[float, BeforeValidator(_nan_for_null)]
"""A float that pydantic reads from JSON as NaN where `null_where_not_finite` wrote null."""


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn an error of the disk or the path into a RunError that names `place`."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: of a NUL in a path
        raise RunError(
            f"{place} cannot be written: {reason(error)}; free space there, or choose another "
            "output folder (--out)"
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file durably: after a crash it has the old content or the new one, never a part."""
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


def write_signed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with a digest, by which `read_signed` notices an edit."""
    # Options can be numpy's numbers.
    plain = json.loads(json.dumps(content, default=lambda number: number.item()))
    write_atomically(path, json.dumps({**plain, "sha256": _digest(plain)}).encode())


def read_signed(path: Path, version: int, remedy: str) -> dict[str, Any]:
    """Read what `write_signed` wrote.

    Args:
        version: the content's "format".
        remedy: for an edited file.
    """
    if path.is_fifo():  # which would never end
        raise RunError(f"{path} is a pipe; {remedy}")
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path} cannot be read: {reason(error)}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error!s:.200}; {remedy}") from error
    content = content if isinstance(content, dict) else {}
    found = content.get("format", content.get("format_version"))  # the latter in 0.1.0
    if found not in (version, None):
        raise RunError(
            f"{path} has format {found!r:.20}, and this gradshare reads {version}; use gradshare "
            f"{content.get('gradshare', '0.1.0')!s:.60}, which wrote it"
        )
    if content.pop("sha256", None) != _digest(content):
        raise RunError(f"{path} was edited or is damaged; {remedy}")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a new name durable, where the system can: Windows and some network disks can't."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, unless they exist."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def null_where_not_finite(value: Any) -> Any:
    """The same JSON value with null for NaN and infinity, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: null_where_not_finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [null_where_not_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
