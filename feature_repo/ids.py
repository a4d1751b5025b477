"""Ids of one user written in two forms: with white space, in other case, with a trailing .0, with leading zeros.

A spreadsheet or a float column makes such ids of others. Nothing is joined by them: what differs is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import duckdb

from campaign import StoreError
from feature_repo.duck import connect

_FORMS: dict[str, Callable[[str], str]] = {
    "white space": lambda text: re.sub(r"^\s+|\s+$", "", text),
    "other case": str.lower,
    "a trailing .0": lambda text: re.sub(r"\.0+$", "", text),
    "leading zeros": lambda text: re.sub(r"^0+(.)", r"\1", text),
}


def plain_sql(column: str) -> str:
    """SQL of what the forms of an id have in common; what `difference` compares."""
    trimmed = f"regexp_replace(lower({column}), '^\\s+|\\s+$', '', 'g')"
    return f"regexp_replace(regexp_replace({trimmed}, '\\.0+$', ''), '^0+(.)', '\\1')"


def difference(one: str, other: str) -> str:
    """In words, what two forms of an id differ in: the rules without which they would not be the same."""

    def plain(text: str, without: str) -> str:
        for name, form in _FORMS.items():
            text = text if name == without else form(text)
        return text

    return " and ".join(name for name in _FORMS if plain(one, name) != plain(other, name))


def ids_like(file: Path, user_id: str) -> tuple[list[str], str]:
    """Ids of a snapshot that are this one, whatever their form, the same first; and one id as an example.

    Raises: StoreError: the snapshot cannot be read.
    """
    same = f"{plain_sql('user_id')} = {plain_sql('$id')} ORDER BY user_id <> $id, user_id LIMIT 10"
    try:
        with connect(threads=1) as con:
            con.execute("CREATE TABLE ids AS SELECT user_id FROM read_parquet($file)", {"file": str(file)})
            like = con.execute(f"SELECT user_id FROM ids WHERE {same}", {"id": user_id}).fetchall()
            example = con.execute("SELECT user_id FROM ids LIMIT 1").fetchone()
    except duckdb.Error as error:
        raise StoreError(f"{file} cannot be read: {str(error).splitlines()[0]}; run `tactful features`") from None
    return [user for (user,) in like], example[0] if example else ""
