"""Telling a web page that was saved under a data file's name from the data file.

Download links die, ask for a login or for a confirmation; what a program or a hurried user then
saves is the page that says so.
"""

from __future__ import annotations

from pathlib import Path

from gradshare.errors import DataError


def is_web_page(head: bytes) -> bool:
    """Whether the first bytes of a file are those of an HTML page."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head", b"<!--", b"<body"))


def web_page_error(path: Path, expected: str) -> DataError:
    """The error for a file that is an HTML page where data is expected.

    Args:
        path: the file.
        expected: what it should be, with its article: "an archive".
    """
    return DataError(
        f"{path} is a web page, not {expected}: the server answered with a web page (an error, "
        "a login or a confirmation) and it was saved under this name; delete it, download the "
        "file by hand in a browser and pass --from PATH"
    )
