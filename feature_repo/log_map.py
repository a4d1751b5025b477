"""logs.toml: where your own tables lie, and which of their columns is which of ours. Validated once and frozen.

    [users]
    files = "exports/members.csv"          # CSV or Parquet, * and ** as in a shell, from the folder of logs.toml
    columns.user_id = "member"             # their column
    columns.device = {value = "unknown"}   # the same in every row
    columns.plan = {column = "tariff", values = {P = "paid"}, default = "free"}

A file without tables maps nothing: logs are then what lies under data/logs (docs/logs.md).
"""

from __future__ import annotations

import difflib
import hashlib
import os
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from campaign import home, read_toml, validated
from feature_repo.checks import Column, Contract
from feature_repo.contracts import LOGS
from feature_repo.duck import connect

Scalar = str | bool | int | float


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Source(_Frozen):
    """Where one of our columns comes from; a plain text is the name of their column.

    `column`: theirs. `value`: the same in every row, instead of a column. `values`: their value -> ours; others stay.
    `default`: where theirs is empty. `divide_by`: 60 makes minutes of seconds. `format`: of times that are text, as
    "%d.%m.%Y %H:%M"; else ISO 8601. `unit`: of times that are numbers since 1970: s, ms or us.
    """

    column: str | None = None
    value: Scalar | None = None
    values: dict[str, str] = {}
    default: Scalar | None = None
    divide_by: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    format: str | None = None
    unit: Literal["s", "ms", "us"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        return {"column": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _check(self) -> Source:
        if (self.column is None) == (self.value is None):
            raise ValueError(f"column == {self.column!r} and value == {self.value!r}, must be one of the two")
        if self.value is not None and self.model_fields_set != {"value"}:
            raise ValueError(f"value == {self.value!r} stands in every row as it is; leave the other keys out")
        if self.format is not None and self.unit is not None:
            raise ValueError(f"format == {self.format!r} is of text and unit == {self.unit!r} of numbers; keep one")
        return self


class Share(Source):
    """Probability of one arm: a number, or the name of their column."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        if isinstance(given, int | float):
            return {"value": float(given)}
        return {"column": given} if isinstance(given, str) else given


class Table(_Frozen):
    """One of your tables.

    `files`: CSV (also .csv.gz) or Parquet, by their ending. `timezone`: of times that do not say theirs; default that
    of the whole file. `delimiter`, `decimal`: of CSV. `where`: an SQL condition on their columns; other rows are left
    out. `columns`: ours -> theirs; a column that is called the same need not be named.
    """

    files: str = Field(min_length=1)
    timezone: str | None = None
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    decimal: Literal[".", ","] = "."
    where: str | None = None
    columns: dict[str, Source] = {}


class Decisions(Table):
    """The random messages of the time before Tactful.

    `propensities`: arm -> its probability, a number or their column; together 1. `holdout_share`: share of users that
    `columns.holdout` keeps from every message for good, 0 where there are none.
    """

    propensities: dict[str, Share] = Field(min_length=2)
    holdout_share: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> Decisions:
        if ("holdout" in self.columns) != (self.holdout_share > 0):
            raise ValueError(
                f"holdout_share == {self.holdout_share:g} with columns.holdout "
                f"{'given' if 'holdout' in self.columns else 'not given'}: name both, or none where nobody is held out"
            )
        numbers = [share.value for share in self.propensities.values() if isinstance(share.value, float)]
        if len(numbers) == len(self.propensities) and abs(sum(numbers) - 1) > 1e-6:
            raise ValueError(f"sum of propensities == {sum(numbers):g}, must be 1")
        return self


class LogMap(_Frozen):
    """A validated logs.toml. `timezone`: of times that do not say theirs, as "Europe/Berlin"."""

    timezone: str = "UTC"
    users: Table | None = None
    sessions: Table | None = None
    messages: Table | None = None
    subscriptions: Table | None = None
    decisions: Decisions | None = None

    @model_validator(mode="after")
    def _check(self) -> LogMap:
        for zone in {self.timezone, *(table.timezone for table in self.tables.values() if table.timezone)}:
            _check_zone(zone)
        for name, table in self.tables.items():
            known = contract_of(name, ()).columns
            for column in table.columns:
                if column not in known:
                    near = difflib.get_close_matches(column, known, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                    raise ValueError(f"{name}.columns.{column} == no column of ours; {hint}")
        return self

    @property
    def tables(self) -> dict[str, Table]:
        """The tables that are mapped, by name."""
        return {name: table for name in (*LOGS, "decisions") if (table := getattr(self, name)) is not None}

    def hash_of(self, name: str) -> str:
        """Changes with everything that the conversion of a table depends on in logs.toml."""
        return hashlib.sha256(f"{self.timezone}{self.tables[name].model_dump_json()}".encode()).hexdigest()[:16]


def contract_of(name: str, arms: tuple[str, ...]) -> Contract:
    """What the columns of a mapped table must be; those of decisions are fewer than the decision log's."""
    if name in LOGS:
        return LOGS[name]
    columns = {
        "decision_id": Column("string"),
        "user_id": Column("string"),
        "decided_at": Column("timestamp"),
        "arm": Column("string", categories=arms),
        "holdout": Column("boolean", nullable=True),
        "hour": Column("integer", nullable=True, minimum=0, maximum=23),
        "surface": Column("string", nullable=True),
    }
    columns |= {f"propensity of {arm}": Column("float", minimum=0, maximum=1) for arm in arms}
    rules = (_sum_to_one,) if arms else ()
    return Contract("decisions", columns, ("decision_id",), partition_by="decided_at", rules=rules)


def _sum_to_one(table: pa.Table) -> tuple[str, Any, str]:
    names = [name for name in table.column_names if name.startswith("propensity of ")]
    total = np.sum([table[name].to_numpy() for name in names], axis=0)
    return names[0], pa.array(np.abs(total - 1) > 1e-6), "and those of the other arms must sum to 1"


def log_map_path() -> Path:
    """$TACTFUL_LOGS, or logs.toml beside campaign.toml."""
    return Path(os.environ.get("TACTFUL_LOGS") or home() / "logs.toml").resolve()


def load_log_map() -> LogMap:
    """Read and validate logs.toml; without the file nothing is mapped.

    Raises: CampaignError: not TOML, or a key is missing, unknown or impossible; or $TACTFUL_LOGS names no file.
    """
    file = log_map_path()
    if not file.exists() and "TACTFUL_LOGS" not in os.environ:
        return LogMap()
    return validated(LogMap, read_toml(file), file)


def _check_zone(zone: str) -> None:
    try:
        with connect() as connection:
            connection.execute("SET TimeZone = " + "'" + zone.replace("'", "''") + "'")
    except duckdb.Error as error:
        near = str(error).partition("Candidate time zones:")[2].strip()
        hint = f"did you mean {near.split(', ')[0]}?" if near else "write it as Europe/Berlin"
        raise ValueError(f"timezone == {zone!r} is not known; {hint}") from None
