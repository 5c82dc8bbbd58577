"""Reading text files and tables, and telling web pages from the files that they were saved as.

Download links die, or ask for a login or a confirmation. What a program or a user in a hurry then
saves is the page that says so.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gradshare.errors import DataError, reason


def is_web_page(path: Path) -> bool:
    """Whether a file is an HTML page, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(512)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head", b"<!--", b"<body"))


def refuse_web_page(path: Path, expected: str) -> None:
    """Raise DataError if a path is an HTML page, or no file but perhaps a pipe, which would never
    end. `expected` is what it should be, with its article: "an archive".
    """
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a file; it must be {expected}")
    if is_web_page(path):
        raise DataError(
            f"{path} is a web page, not {expected}: the server answered with a web page (an error, "
            "a login or a confirmation) and it was saved under this name; delete it, download the "
            "file by hand in a browser and pass --from PATH"
        )


def read_text(path: Path, expected: str) -> str:
    """The text of a file in UTF-8, unless it is a web page; see `refuse_web_page`."""
    refuse_web_page(path, expected)
    return path.read_text(encoding="utf-8-sig")


def read_json(path: Path, expected: str) -> Any:
    """The content of a JSON file. Raise DataError if it cannot be read: it must be `expected`."""
    try:
        return json.loads(read_text(path, expected))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not readable as JSON ({reason(error)}); it must be {expected}"
        ) from error


def is_table(path: Path) -> bool:
    """Whether a path is that of a table of images."""
    return path.is_file() and path.suffix.lower() == ".csv"


def table_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[Any, Any]]]:
    """The rows of a CSV file that has some columns: the number of each one's last line, and its
    values by column, as `csv.DictReader` has them. Raise DataError for another file.
    """
    try:
        text = read_text(path, "a table of file names")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not readable as UTF-8 text ({error}); replace it") from error
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = rows.fieldnames or ()
        if not {*columns} <= {*names}:
            wanted = f"{','.join(columns)!r} but {','.join(names)!r}"
            raise table_error(path, 1, f"the columns are not {wanted}")
        for row in rows:
            yield rows.reader.line_num, row
    except csv.Error as error:
        raise table_error(path, rows.reader.line_num, error) from error


def table_error(path: Path, line: int, cause: object) -> DataError:
    """An error that names a line of a table."""
    return DataError(f"line {line} of {path}: {cause}; correct it, or get the table again")
