"""Bring your own table: a randomised experiment in one CSV or Parquet file, described by a SPEC.toml.

unit = "user_id"                      # optional; default: each row its own unit
features = ["recency", "channel"]     # numeric, bool or string columns
arm = "segment"
control = "No E-Mail"
propensity = "p"                      # optional; probability of the arm the row got; default: the arms' shares
seed = 7
threshold = 0.0                       # optional; best_arm is control unless its score is above
[[outcome]]
name = "visit"
kind = "binary"
weight = 1.0
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from campaign import DataError, read_toml, validated
from feature_repo.atomic import replacing, write_json
from models.decision_log import Outcome
from models.forward import NumpyModel
from models.predictions import policy_arm, scores
from models.spec import FitSpec, columns_of
from models.table_file import naming, plain_features, read_table

REPORT = "report.json"
UPLIFT_POLICY, RESPONSE_POLICY = "uplift", "response"
MANY_VALUES = 200  # a text column with more, most of them once, is probably no category


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class OutcomeColumn(_Strict):
    """An [[outcome]] of SPEC.toml."""

    name: str = Field(min_length=1)
    kind: Literal["binary", "continuous"]
    weight: float = Field(allow_inf_nan=False)


class TableSpec(_Strict):
    """A validated SPEC.toml."""

    unit: str | None = None
    features: tuple[str, ...] = Field(min_length=1)
    arm: str
    control: str
    propensity: str | None = None
    seed: int = Field(default=0, ge=0)
    threshold: float = Field(default=0.0, allow_inf_nan=False)
    outcome: tuple[OutcomeColumn, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> TableSpec:
        taken = [self.arm, *(o.name for o in self.outcome), *([self.propensity] if self.propensity else [])]
        both = sorted(set(self.features) & set(taken))
        if both:
            raise ValueError(f"features == {both} are also arm, propensity or outcome; a model must not see them")
        for kind, names in (("features", self.features), ("outcomes", [o.name for o in self.outcome])):
            twice = sorted({name for name in names if list(names).count(name) > 1})
            if twice:
                raise ValueError(f"{kind} == {twice} are named twice")
        return self

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcomes as the model and the evaluation take them."""
        return [Outcome(o.name, o.kind, o.weight) for o in self.outcome]


def load_spec(path: Path | str) -> TableSpec:
    """Read a SPEC.toml (CampaignError: names the file and the key)."""
    return validated(TableSpec, read_toml(Path(path)), Path(path))


def read_described(path: Path | str, spec: TableSpec) -> tuple[pd.DataFrame, FitSpec]:
    """`prepare` of a file; whatever is wrong with it is said with its name."""
    with naming(path):
        frame = read_table(path, as_written=[spec.arm, *([spec.unit] if spec.unit else [])])
        return prepare(frame, spec)


def prepare(frame: pd.DataFrame, spec: TableSpec) -> tuple[pd.DataFrame, FitSpec]:
    """The frame with its arm column as index (0 = control), and what `models.train.fit` needs to know.

    Raises: DataError: a column is missing, a unit or arm is missing, control is not among the arms.
    """
    named = [*spec.features, spec.arm, *(o.name for o in spec.outcome), *(n for n in (spec.unit, spec.propensity) if n)]
    missing = [name for name in named if name not in frame]
    if missing:
        raise DataError(f"columns {missing} are missing; the file has: {', '.join(map(str, frame.columns))}")
    for what, name in (("unit", spec.unit), ("arm", spec.arm)):
        rows = np.flatnonzero(frame[name].isna() if name else [])
        if len(rows):
            raise DataError(f"{what} column {name!r} is empty in {len(rows)} rows (first: row {rows[0]}); drop them")
    frame = plain_features(frame, spec.features)
    values = frame[spec.arm].astype(str)
    found = sorted(values.unique())
    if spec.control not in found:
        raise DataError(f"control == {spec.control!r} is no value of column {spec.arm!r}; it has {found[:10]}")
    arms = (spec.control, *(arm for arm in found if arm != spec.control))
    if len(arms) < 2:
        raise DataError(f"every row has arm {spec.control!r}; uplift needs a message arm beside control")
    indexed = frame.assign(**{spec.arm: values.map({arm: i for i, arm in enumerate(arms)}).astype("int64")})
    features: dict[str, Literal["numeric", "string"]] = {name: _kind(frame[name]) for name in spec.features}
    return indexed, FitSpec(
        features, arms, tuple(spec.outcomes), spec.arm, propensity=spec.propensity, unit=spec.unit, seed=spec.seed
    )


def _kind(column: pd.Series) -> Literal["numeric", "string"]:
    numeric = pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column) or column.isna().all()
    if numeric:
        return "numeric"
    values = column.dropna().astype(str).nunique()
    if values > MANY_VALUES and values > len(column) / 2:
        warnings.warn(
            f"feature {column.name!r} is text with {values:,} different values in {len(column):,} rows, for example "
            f"{column.dropna().iloc[0]!r}: an id tells nothing about others, and a number with a typo is text",
            UserWarning,
            stacklevel=2,
        )
    return "string"


def fit_table(frame_path: Path | str, spec_path: Path | str, out_dir: Path | str, progress: Any = None) -> pd.DataFrame:
    """Train on a table; writes the model folder with report.json, both or none.

    Args:
        frame_path: CSV or Parquet.
        spec_path: SPEC.toml.
        out_dir: the model folder, replaced if it exists.
        progress: called as (steps done, steps in all).

    Returns: what is printed: per arm and outcome the rows, the mean, the uplift with its 95% interval, and the
        spread of the predicted uplift between users.
    """
    from models.train import fit

    spec, out = load_spec(spec_path), Path(out_dir).resolve()
    if out.exists() and not (out / "model.json").exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out_dir}: exists and holds no model; it would be replaced: name another folder")
    frame, fit_spec = read_described(frame_path, spec)
    with naming(frame_path):
        fitted = fit(frame, fit_spec, progress=progress)
    table = arm_table(frame, spec, fit_spec, fitted.out_of_fold)
    settings = {"unit": spec.unit, "policy": {"threshold": spec.threshold}, "data_window": {"n": len(frame)}}
    report = {"rows": len(frame), "arms": list(fit_spec.arms), "table": _plain(table)}
    with replacing(out) as aside:
        fitted.save(aside, extra=settings)
        write_json(aside / REPORT, report)
    return table


def predict_table(
    model_dir: Path | str, frame_path: Path | str, out_file: Path | str, weights: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """Predict every row of a table, in input order; writes Parquet and returns the same frame.

    Args:
        model_dir: written by `fit_table`.
        frame_path: CSV or Parquet.
        out_file: Parquet to write.
        weights: outcome -> worth of one unit, instead of the one it was fitted with: no training is needed for that.
    """
    model, out = NumpyModel.load(model_dir), Path(out_file).resolve()
    if weights:
        model = model.reweighted({o.name: o.weight for o in model.spec.outcomes} | dict(weights))
    if out.is_dir():
        raise DataError(f"{out_file}: is a folder; name the Parquet file to write")
    unit = model.spec.extra.get("unit")
    with naming(frame_path):
        kinds = {f.name: f.kind for f in model.spec.features}
        text, numeric = ([name for name in kinds if kinds[name] == kind] for kind in ("string", "numeric"))
        frame = read_table(frame_path, as_written=[unit] if unit else [], text=text)
        table = predictions(model, plain_features(frame, numeric))
    with replacing(out) as aside:
        table.to_parquet(aside, index=False)
    return table


def predictions(model: NumpyModel, frame: pd.DataFrame) -> pd.DataFrame:
    """Unit (or row number), `mu_<arm>_<outcome>`, `uplift_<arm>_<outcome>`, `score_<arm>` and `best_arm` by row."""
    spec = model.spec
    unit = spec.extra.get("unit")
    if unit is not None and unit not in frame:
        raise DataError(f"unit column {unit!r} is missing; the file has: {', '.join(map(str, frame.columns))}")
    mu_hat = model.predict(columns_of(frame, {f.name: f.kind for f in spec.features}))
    score = scores(mu_hat, [o.weight for o in spec.outcomes], spec.costs)
    names = [(a, arm, o, outcome.name) for a, arm in enumerate(spec.arms) for o, outcome in enumerate(spec.outcomes)]
    columns: dict[str, Any] = {unit or "row": np.arange(len(frame)) if unit is None else frame[unit].to_numpy()}
    columns |= {f"mu_{arm}_{outcome}": mu_hat[:, a, o] for a, arm, o, outcome in names}
    columns |= {f"uplift_{arm}_{outcome}": mu_hat[:, a, o] - mu_hat[:, 0, o] for a, arm, o, outcome in names if a}
    columns |= {f"score_{arm}": score[:, a] for a, arm in enumerate(spec.arms[1:])}
    best = policy_arm(score, spec.extra.get("policy", {}).get("threshold", 0.0))
    return pd.DataFrame(columns | {"best_arm": np.array(spec.arms, dtype=object)[best]})


def parse_weights(options: Sequence[str]) -> dict[str, float]:
    """["visit=1", "spend=.1"] as a mapping (DataError: not of that form)."""
    weights = {}
    for option in options:
        name, _, value = option.rpartition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            raise DataError(f"weight {option!r}: expected OUTCOME=WORTH, for example visit=1.5") from None
    return weights


def evaluate_table(frame_path: Path | str, spec_path: Path | str, progress: Any = None) -> pd.DataFrame:
    """Cross-fitted evaluation of a table: every row is judged by a network that never saw its unit.

    Returns: `models.evaluate`'s table (SNIPS and DR) for send_none, send_all by arm, the uplift policy (best arm above
        the threshold), the policies of simpler models, and the response baseline and a random draw, which message as
        many users as the uplift policy. Differences of the uplift policy to each of them are given for the weighted
        outcome.
    """
    from models.train import fit

    spec = load_spec(spec_path)
    frame, fit_spec = read_described(frame_path, spec)
    with naming(frame_path):
        return evaluation(frame, spec, fit_spec, fit(frame, fit_spec, progress=progress).out_of_fold)


def evaluation(frame: pd.DataFrame, spec: TableSpec, fit_spec: FitSpec, mu_hat: np.ndarray) -> pd.DataFrame:
    """The table of `evaluate_table` from out-of-fold predictions; (n, n_arms, n_outcomes)."""
    from models import RandomShare, TopShare, evaluate
    from models.baselines import cross_fitted, fit_lightgbm_s, fit_linear_t, fit_response
    from models.evaluation import BASELINES
    from models.train import folds

    fold = folds(frame, fit_spec)
    weights, costs = [o.weight for o in spec.outcome], [0.0] * len(fit_spec.arms)

    def chosen(mu_hat: np.ndarray) -> np.ndarray:
        return np.asarray(np.eye(len(fit_spec.arms))[policy_arm(scores(mu_hat, weights, costs), spec.threshold)])

    uplift = chosen(mu_hat)
    share = 1 - uplift[:, 0].mean()
    response = scores(cross_fitted(fit_response, frame, fit_spec, fold), weights, costs)
    policies: dict[str, Any] = {
        UPLIFT_POLICY: uplift,
        "linear T-learner": chosen(cross_fitted(fit_linear_t, frame, fit_spec, fold)),
        "LightGBM S-learner": chosen(cross_fitted(fit_lightgbm_s, frame, fit_spec, fold)),
        RESPONSE_POLICY: TopShare(response, share),
        "random": RandomShare(share),
    }
    log, propensity = _with_propensity(frame, spec)
    columns: dict[str, Any] = {"arm": spec.arm, "propensity": propensity, "cluster": spec.unit, "mu_hat": mu_hat}
    table = evaluate(log, policies, spec.outcomes, baselines=(*BASELINES, *list(policies)[1:]), **columns)
    usual = table["baseline"].isin(["", *BASELINES])
    return table[usual | ((table["policy"] == UPLIFT_POLICY) & (table["outcome"] == "weighted"))].reset_index(drop=True)


def verdict(table: pd.DataFrame) -> str:
    """What the uplift policy gains over every other one, in a sentence each, from `evaluate_table`'s answer."""
    own = (table["policy"] == UPLIFT_POLICY) & (table["outcome"] == "weighted") & (table["estimator"] == "dr")
    lines = []
    for row in table[own & (table["baseline"] != "")].to_dict(orient="records"):
        lower, upper = row["ci_lower"], row["ci_upper"]
        same = ": not significantly different" if lower <= 0 <= upper else ""
        limits = f"(95%: {lower:+.4g} to {upper:+.4g})"
        lines.append(f"uplift policy minus {row['baseline']}: {row['value']:+.4g} per row {limits}{same}")
    return "\n".join(lines)


def arm_table(frame: pd.DataFrame, spec: TableSpec, fit_spec: FitSpec, mu_hat: np.ndarray) -> pd.DataFrame:
    """Rows, mean and uplift of every arm and outcome, with the sd between users of the predicted uplift."""
    from models import SendAll, evaluate

    log, propensity = _with_propensity(frame, spec)
    everyone = {name: SendAll(a) for a, name in enumerate(fit_spec.arms) if a}
    values = evaluate(
        log, everyone, spec.outcomes, arm=spec.arm, propensity=propensity, cluster=spec.unit, estimators=["snips"]
    )
    found = {(str(r["policy"]), str(r["baseline"]), str(r["outcome"])): r for _, r in values.iterrows()}
    rows = []
    for a, name in list(enumerate(fit_spec.arms))[1:]:
        for o, outcome in enumerate(spec.outcome):
            value, uplift = found[name, "", outcome.name], found[name, "send_none", outcome.name]
            spread = float((mu_hat[:, a, o] - mu_hat[:, 0, o]).std())
            rows.append(
                {
                    "arm": name,
                    "outcome": outcome.name,
                    "rows": int((frame[spec.arm] == a).sum()),
                    "mean": value["value"],
                    "uplift": uplift["value"],
                    "ci_lower": uplift["ci_lower"],
                    "ci_upper": uplift["ci_upper"],
                    "uplift_sd_between_users": spread,
                }
            )
    return pd.DataFrame(rows)


def _with_propensity(frame: pd.DataFrame, spec: TableSpec) -> tuple[pd.DataFrame, str]:
    """The frame and its propensity column; without one, the share of each row's arm."""
    if spec.propensity is not None:
        return frame, spec.propensity
    share = frame[spec.arm].map(frame[spec.arm].value_counts(normalize=True))
    return frame.assign(_propensity=share.astype(float)), "_propensity"


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    records = table.to_dict(orient="records")
    return [{str(k): v if isinstance(v, str | int) else _finite(v) for k, v in row.items()} for row in records]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
