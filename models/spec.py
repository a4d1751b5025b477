"""What a model is about: features, arms, outcomes and training settings; and the checks a training frame must pass."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from campaign import DataError, ModelError
from models.decision_log import Outcome
from models.inputs import check_number, is_number

SCHEMA = 1
LARGEST_OUTCOME = 1e50  # fourth powers of larger values overflow, and every prediction would be NaN
FEW_ROWS = 100  # an arm with fewer rows gets a warning: its uplift will be close to the average of the outcome

Kind = Literal["numeric", "string"]


@dataclass(frozen=True)
class Feature:
    """One input column; a string column has its known `categories` (None stands for missing)."""

    name: str
    kind: str
    categories: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class FitSpec:
    """Everything `fit` needs to know about a frame.

    Args:
        features: column name -> "numeric" | "string", in the order the model will keep.
        arms: names; the `arm` column holds their index, 0 = control.
        outcomes: objects with `name`, `kind` and `weight`; column `outcome_prefix + name`.
        costs: per arm, in the unit of the score; default 0.
        propensity: column with the probability of the arm the row got; default the shares of the arms.
        unit: column that keeps rows of one user in one fold; default each row its own.
        members: members of the ensemble, and folds of the cross-fit.
        rules: rule features per member found by boosted trees; 0 trains without LightGBM.
    """

    features: Mapping[str, Kind]
    arms: tuple[str, ...]
    outcomes: tuple[Any, ...]
    arm: str = "arm"
    outcome_prefix: str = ""
    costs: tuple[float, ...] = ()
    propensity: str | None = None
    unit: str | None = None
    seed: int = 0
    members: int = 5
    rules: int = 150
    epochs: int = 10
    batch_rows: int = 2048
    learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        if not self.features:
            raise DataError("features is empty; name at least one column")
        if len(self.arms) < 2:
            raise DataError(f"arms == {list(self.arms)}, must name control and at least one message")
        if not self.outcomes:
            raise DataError("outcomes is empty; name at least one")
        if self.costs and len(self.costs) != len(self.arms):
            raise DataError(f"costs has {len(self.costs)} values for {len(self.arms)} arms; give one per arm")
        if self.members < 2:
            raise DataError(f"members == {self.members}, must be >= 2: each member leaves one fold out")
        for name, least in (("seed", 0), ("rules", 0), ("epochs", 1), ("batch_rows", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int | np.integer)
            check_number(name, value, whole and value >= least, f"a whole number >= {least}")
        rate = self.learning_rate
        check_number("learning_rate", rate, is_number(rate) and 0 < rate < np.inf, "a finite number > 0")
        if not np.isfinite([*self.costs, *(o.weight for o in self.outcomes)]).all():
            weights = [o.weight for o in self.outcomes]
            raise DataError(f"weights == {weights}, costs == {list(self.costs)}, must be finite numbers")
        for outcome in self.outcomes:
            if outcome.kind not in ("binary", "continuous"):
                raise DataError(f"outcome {outcome.name!r}: kind == {outcome.kind!r}, must be 'binary' or 'continuous'")

    @property
    def targets(self) -> tuple[Outcome, ...]:
        """The outcomes as the model keeps them."""
        return tuple(Outcome(o.name, o.kind, float(o.weight)) for o in self.outcomes)


@dataclass(frozen=True)
class ModelSpec:
    """The part of a model that is not a tensor; `to_json` is model.json."""

    features: tuple[Feature, ...]
    arms: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    costs: tuple[float, ...]
    members: int
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> np.ndarray:
        """Worth of one unit of each outcome; shape (n_outcomes,)."""
        return np.array([o.weight for o in self.outcomes], dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Plain values for canonical JSON."""
        features = [
            {"name": f.name, "kind": f.kind} | ({"categories": list(f.categories)} if f.kind == "string" else {})
            for f in self.features
        ]
        outcomes = [{"name": o.name, "kind": o.kind, "weight": o.weight} for o in self.outcomes]
        return {
            **self.extra,
            "schema": SCHEMA,
            "features": features,
            "arms": list(self.arms),
            "outcomes": outcomes,
            "costs": list(self.costs),
            "members": self.members,
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> ModelSpec:
        """Read model.json's value (ModelError: another schema, or a key is missing)."""
        schema = raw.get("schema") if isinstance(raw, dict) else None
        if schema != SCHEMA:
            raise ModelError(f"model.json: schema == {schema}, this version reads {SCHEMA}; train again")
        try:
            features = tuple(Feature(f["name"], f["kind"], tuple(f.get("categories", ()))) for f in raw["features"])
            outcomes = tuple(Outcome(o["name"], o["kind"], float(o["weight"])) for o in raw["outcomes"])
            own = {"schema", "features", "arms", "outcomes", "costs", "members"}
            extra = {key: value for key, value in raw.items() if key not in own}
            return cls(features, tuple(raw["arms"]), outcomes, tuple(raw["costs"]), raw["members"], extra)
        except (KeyError, TypeError) as error:
            raise ModelError(f"model.json: key {error} is missing or malformed; train again") from None


class Labels(NamedTuple):
    """Checked training arrays: arm (n,) int64; outcome (n, n_outcomes) float64; propensity (n,) of the arm taken."""

    arm: np.ndarray
    outcome: np.ndarray
    propensity: np.ndarray


def columns_of(frame: Mapping[str, Any] | pd.DataFrame, features: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Feature columns as the model takes them: numeric float64 with NaN, string object with None.

    Raises: DataError: a column is missing, or its type is not the declared one (column, rows and an example named).
    """
    missing = [name for name in features if name not in frame]
    if missing:
        have = ", ".join(map(str, list(frame)[:20]))
        raise DataError(f"feature columns {missing} are missing; the frame has: {have}; add them or drop the features")
    return {
        name: (_numeric if kind == "numeric" else _strings)(name, pd.Series(frame[name]))
        for name, kind in features.items()
    }


def _numeric(name: str, column: pd.Series) -> np.ndarray:
    if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column) or column.isna().all()):
        example = column.dropna().iloc[0]
        raise DataError(
            f"feature {name!r} has dtype {column.dtype} (e.g. {example!r}), expected numbers; "
            "convert it, or declare it as a string feature"
        )
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _strings(name: str, column: pd.Series) -> np.ndarray:
    values = column.astype(object).to_numpy(copy=True)
    empty = pd.isna(values)
    values[empty] = None
    wrong = [v for v in values[~empty] if not isinstance(v, str)]
    if wrong:
        raise DataError(
            f"feature {name!r} holds {type(wrong[0]).__name__} values (e.g. {wrong[0]!r}), expected strings; "
            "convert it, or declare it as a numeric feature"
        )
    return np.asarray(values, dtype=object)


def labels_of(frame: pd.DataFrame, spec: FitSpec, shares: np.ndarray | None = None) -> Labels:
    """Arm, outcomes and propensity of a training frame, checked.

    Args:
        frame: one row per decision.
        spec: names of its columns.
        shares: (n_arms,), of the whole table where `frame` is a part of it: then a part may lack an arm.

    Raises: DataError: empty frame, unknown arm, an arm without rows, a propensity outside (0, 1), an outcome that is
        missing, NaN, infinite or not 0/1 although binary.
    Warns: UserWarning: an arm has fewer than 100 rows.
    """
    if len(frame) == 0:
        raise DataError("the training frame is empty; give at least a few hundred rows of each arm")
    arm = _arms(frame, spec)
    if shares is None:
        shares = _check_counts(np.bincount(arm, minlength=len(spec.arms)), spec) / len(arm)
    outcome = np.column_stack([_outcome(frame, spec.outcome_prefix + o.name, o.kind) for o in spec.outcomes])
    propensity = shares[arm] if spec.propensity is None else _propensity(frame, spec.propensity)
    return Labels(arm, outcome, propensity)


def _arms(frame: pd.DataFrame, spec: FitSpec) -> np.ndarray:
    if spec.arm not in frame:
        raise DataError(f"arm column {spec.arm!r} is missing; the frame has: {', '.join(map(str, frame.columns[:20]))}")
    column = pd.to_numeric(frame[spec.arm], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    bad = ~np.isin(column, np.arange(len(spec.arms)))
    if bad.any():
        raise DataError(
            f"arm column {spec.arm!r}: {int(bad.sum())} rows hold no known arm (first: row {int(bad.argmax())}, "
            f"{frame[spec.arm].iloc[int(bad.argmax())]}); expected 0..{len(spec.arms) - 1} for {list(spec.arms)}"
        )
    return column.astype(np.int64)


def _check_counts(counts: np.ndarray, spec: FitSpec) -> np.ndarray:
    if (counts == 0).any():
        listed = ", ".join(f"{name}: {count}" for name, count in zip(spec.arms, counts, strict=True))
        raise DataError(f"every arm needs rows, found {listed}; uplift is a difference between arms of one experiment")
    for name, count in zip(spec.arms, counts, strict=True):
        if count < FEW_ROWS:
            message = f"arm {name!r} has {count} rows (< {FEW_ROWS}): its uplift by user is mostly the average"
            warnings.warn(message, UserWarning, stacklevel=4)
    return counts


def _outcome(frame: pd.DataFrame, name: str, kind: str) -> np.ndarray:
    if name not in frame:
        raise DataError(f"outcome column {name!r} is missing; the frame has: {', '.join(map(str, frame.columns[:20]))}")
    if not (pd.api.types.is_numeric_dtype(frame[name]) or pd.api.types.is_bool_dtype(frame[name])):
        raise DataError(f"outcome {name!r} has dtype {frame[name].dtype} (e.g. {frame[name].iloc[0]!r}), need numbers")
    values: np.ndarray = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
    expected = f"finite numbers up to {LARGEST_OUTCOME:g}; drop or measure those rows again"
    _reject(~(np.abs(values) <= LARGEST_OUTCOME), values, f"outcome {name!r}", expected)
    if kind == "binary":
        _reject(~np.isin(values, (0, 1)), values, f"outcome {name!r}", "0 or 1 (kind = binary), or declare continuous")
    return values


def _propensity(frame: pd.DataFrame, name: str) -> np.ndarray:
    if name not in frame:
        raise DataError(f"propensity column {name!r} is missing; name the right one, or none for the arms' shares")
    values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    _reject(~((values > 0) & (values < 1)), values, f"propensity {name!r}", "0 < p < 1; a certain arm teaches nothing")
    return values


def _reject(bad: np.ndarray, values: np.ndarray, what: str, expected: str) -> None:
    if bad.any():
        rows = np.flatnonzero(bad)
        raise DataError(
            f"{what}: {len(rows)} of {len(values)} rows are wrong (first: row {rows[0]}, {values[rows[0]]:g}); "
            f"expected {expected}"
        )
