"""A CSV file as its lines: the header, the line of a row, and the first line that breaks the form.

DuckDB reads the rows; its own count of lines forgets those within quotes, and its errors speak of its options.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def open_csv(path: Path) -> Iterator[TextIO]:
    """The text of a .csv or .csv.gz, as UTF-8, without a byte-order mark."""
    with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as binary:
        yield io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")


def lines_of(path: Path, delimiter: str, rows: set[int]) -> dict[int, int]:
    """The line on which each of these rows begins; rows and lines are counted from 1, the header is line 1."""
    found: dict[int, int] = {}
    with open_csv(path) as stream:
        reader = csv.reader(stream, delimiter=delimiter)
        wide = len(next(reader, [])) > 1
        row, begins = 0, reader.line_num + 1
        for record in reader:
            if record or not wide:  # DuckDB passes an empty line by, where a row has several fields
                row += 1
                if row in rows:
                    found[row] = begins
                    if len(found) == len(rows):
                        break
            begins = reader.line_num + 1
    return found


def first_fault(path: Path, delimiter: str) -> str | None:
    """The first line whose fields are not those of the header, or whose quotes do not pair; None where all do."""
    with open_csv(path) as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        begins, fields = 1, 0
        try:
            for record in reader:
                fields = fields or len(record)
                if record and len(record) != fields:
                    return (
                        f"line {begins} has {len(record)} fields, the first line names {fields}: "
                        f"{delimiter.join(record)[:60]!r}; a field that holds {delimiter!r} must stand in double quotes"
                    )
                begins = reader.line_num + 1
        except csv.Error:  # strict: text after a closing quote, or the file ends within quotes
            return (
                f"line {begins}: a double quote is not closed, or text stands after a closing one; a field that holds "
                'double quotes must stand in double quotes, with each of its own written twice ("")'
            )
    return None
