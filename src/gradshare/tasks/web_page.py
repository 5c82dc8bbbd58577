"""Telling a web page that was saved under a data file's name from the data file.

Download links die, or ask for a login or a confirmation. What a program or a user in a hurry then
saves is the page that says so.
"""

from __future__ import annotations

from pathlib import Path

from gradshare.errors import DataError


def is_web_page(path: Path) -> bool:
    """Whether a file is an HTML page, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(512)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head", b"<!--", b"<body"))


def refuse_web_page(path: Path, expected: str) -> None:
    """Raise if a path is an HTML page or no file at all, such as a pipe, which would never end.

    Args:
        path: the file.
        expected: what it should be, with its article: "an archive".

    Raises:
        DataError: it is an HTML page, or no file.
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a file; it must be {expected}")
    if is_web_page(path):
        raise DataError(
            f"{path} is a web page, not {expected}: the server answered with a web page (an error, "
            "a login or a confirmation) and it was saved under this name; delete it, download the "
            "file by hand in a browser and pass --from PATH"
        )
