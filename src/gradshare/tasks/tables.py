"""Reading tables of images: CSV files with a header."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gradshare.errors import DataError
from gradshare.tasks.web_page import refuse_web_page


def table_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[Any, Any]]]:
    """The rows of a table, each with its line.

    Args:
        path: a CSV file in UTF-8.
        columns: those that it must have.

    Yields:
        The number of the row's last line, and the values by column: None where a row is too short,
        and the surplus under the key None where it is too long.

    Raises:
        DataError: it is no such table; the message has the line.
    """
    refuse_web_page(path, "a table of file names")
    try:
        text = path.read_text(encoding="utf-8-sig")
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
