"""From the decision log to a packed challenger: frame, checks, network, policy, value, report.

Three disjoint sets of users: the network sees `train`, the threshold is chosen on `select`, and what is reported
comes from `evaluate`. The split is by salted hash of the user, so a later model keeps the same strangers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from campaign import Campaign, DataError
from feature_repo.atomic import replacing, write_text
from feature_repo.store import FeatureSchema, feature_schema, open_store
from models.choice import Choice
from models.drivers import drivers
from models.explain import explain
from models.forward import NumpyModel
from models.log_checks import check_log, require_valid
from models.predictions import prediction_columns
from models.registry import pack
from models.spec import FitSpec, columns_of
from models.verdicts import broken_weeks, told
from models.worth import SEND_NOTHING, choose_and_evaluate, fit_rivals, headline, rival_columns

if TYPE_CHECKING:
    from models.baselines import Baseline

Progress = Callable[[int, int], None]
# adds files to a model folder before it is packed: folder, model, rows with features and predictions
Finish = Callable[[Path, NumpyModel, pd.DataFrame], None]
EXPLAINED = 300  # users whose scores are explained for the report, about 10 ms each
MIN_ROWS = 500  # of each split: below this no interval says anything


@dataclass(frozen=True)
class Challenger:
    """A packed model with its policy and what it is worth.

    Attributes:
        tag: in the BentoML model store.
        folder: report.html, values.csv, frame.parquet (rows of all splits with predictions and outcomes), gate.parquet
            (recent rows with predictions that did not see them).
        choice: threshold, and every constraint it passed.
        values: `evaluate` on the `evaluate` users.
        currency: of the values.
        advice: where nothing was certified, what stood against it and what would help.
        left_out: decisions that were not used as their week's data was found broken, in words.
    """

    tag: str
    folder: Path
    choice: Choice
    values: pd.DataFrame
    currency: str
    advice: Sequence[str] = ()
    left_out: Sequence[str] = ()

    def summary(self) -> dict[str, Any]:
        """What a machine reads."""
        weighted = headline(self.values)
        return {
            "tag": self.tag,
            "report": str(self.folder / "report.html"),
            "threshold": min(self.choice.threshold, SEND_NOTHING),
            "reason": self.choice.reason,
            "advice": list(self.advice),
            "left_out": list(self.left_out),
            "values": json.loads(weighted.to_json(orient="records")),
        }

    def text(self) -> str:
        """What a person reads."""
        lines = [
            f"challenger: {self.tag}",
            self.choice.reason,
            *self.advice,
            *self.left_out,
            "",
            values_text(self.values, self.currency),
            "",
        ]
        return "\n".join([*lines, f"report: {self.folder / 'report.html'}"])


def train_challenger(
    campaign: Campaign,
    as_of: datetime,
    data: Path,
    *,
    finish: Finish | None = None,
    progress: Progress | None = None,
    champion: NumpyModel | None = None,
    keep: NumpyModel | None = None,
    since: datetime | None = None,
    page: bool = True,
    processes: int = 1,
) -> Challenger:
    """Train on what was known at `as_of`, choose a policy, evaluate it, report it, pack it as the challenger.

    Args:
        campaign: arms, outcomes, guardrails, splits.
        as_of: no decision that matured later, and no event that arrived later, is used.
        data: folder with logs/, decisions/ and features/; reports go to reports/.
        finish: adds to the model folder what serving and monitoring keep there.
        progress: called with (steps done, steps in all) while the network trains.
        champion: also train on from its weights, on recent weeks only; the better of the two becomes the challenger.
        keep: train nothing: this network with the campaign's weights and costs of today, and the policy chosen anew.
        since: the world changed then. Where enough decisions since have matured, they alone choose, grade and describe
            the challenger, at its score's own cut: the gate tests the guardrails on more of them than `select` has.
        page: draw report.html, which takes seconds.
        processes: that train the network together, where there are too many decisions for memory.
    """
    store = open_store()
    schema = feature_schema(store)
    options: dict[str, Any] = {"finish": finish, "progress": progress, "champion": champion, "keep": keep}
    options |= {"since": since, "page": page}
    from models import streamed

    frame = streamed.frame_in_memory(store, campaign, data, as_of)
    if frame is None:
        found = streamed.train_streamed(campaign, data / "frame", schema, data, processes=processes, **options)
    else:
        found = fit_and_report(campaign, frame, schema, data, **options)
    return replace(found, left_out=told(broken_weeks(data / "monitoring")))


@dataclass(frozen=True)
class Whole:
    """What a frame is a sample of, where there are too many decisions for memory.

    Attributes:
        start: how the network came to be.
        window: first and last decision, how many, and the share of them that the sample is.
        values: the table of values of all `evaluate` users, from the network, the simpler models and the choice; None:
            those of the sample stand for all.
    """

    start: str
    window: Mapping[str, Any]
    values: Callable[[NumpyModel, Mapping[str, Baseline], Choice], pd.DataFrame] | None


def fit_and_report(
    campaign: Campaign,
    frame: pd.DataFrame,
    schema: FeatureSchema,
    data: Path,
    *,
    finish: Finish | None = None,
    progress: Progress | None = None,
    champion: NumpyModel | None = None,
    keep: NumpyModel | None = None,
    since: datetime | None = None,
    page: bool = True,
    whole: Whole | None = None,
) -> Challenger:
    """`train_challenger` from a frame that is already there (columns of `training_frame`, and `split`), or a sample."""
    from models.method import shortfall
    from models.report import training_report
    from models.starts import fit_starts, keep_network, of_the_change

    spec, checks = fit_spec(campaign, schema), randomisation_checks(campaign, frame, schema)
    require_valid(checks)
    _check_splits(frame)
    changed = of_the_change(frame, since)
    if keep is None:
        start, fitted, honest = fit_starts(campaign, frame, spec, champion, changed, progress)
    else:
        start, fitted, honest = keep_network(campaign, frame, spec, keep)
    mu_hat = fitted.predict(frame)
    simple = fit_rivals(frame, spec)
    rival = {name: model.predict(frame) for name, model in simple.items()}
    now = np.ones(len(frame), dtype=bool) if changed is None else changed
    choice, values = choose_and_evaluate(
        campaign,
        *_rows(now, frame, mu_hat),
        {name: other[now] for name, other in rival.items()},
        own_cut=changed is not None,
    )
    if whole and whole.values:
        values = whole.values(fitted.model, simple, choice)
    simpler = rival_columns(campaign, rival)
    predicted = pd.concat([frame, _predictions(campaign, mu_hat, choice), simpler], axis=1)
    judged = pd.concat([frame, _predictions(campaign, honest.mu_hat, choice), simpler], axis=1)[honest.rows]
    predicted, mu_hat = _rows(now, predicted, mu_hat)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        window = whole.window if whole else data_window(frame)
        start = whole.start if whole else start
        fitted.save(folder, _extra(campaign, schema, choice, values) | {"start": start, "data_window": window})
        if finish is not None:
            finish(folder, fitted.model, predicted)
        tag = pack(folder)
    report = data / "reports" / tag.replace(":", "-")
    report.mkdir(parents=True, exist_ok=True)
    for name, rows in (("frame", predicted), ("gate", judged)):
        with replacing(report / f"{name}.parquet") as aside:
            rows.to_parquet(aside, index=False)
    write_text(report / "values.csv", values.to_csv(index=False))
    if page:
        told = score_drivers(fitted.model, predicted, campaign.training.seed)
        half_width = fitted.model.half_width()[:, -1]
        html = training_report(campaign, tag, predicted, mu_hat, choice, values, checks, told, half_width)
        write_text(report / "report.html", html)
    return Challenger(tag, report, choice, values, campaign.currency, shortfall(campaign, choice))


def score_drivers(model: NumpyModel, frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """`models.explain.drivers` of up to EXPLAINED rows that were never trained on."""
    held_out = frame[frame["split"] == "evaluate"]
    rows = held_out.sample(min(EXPLAINED, len(held_out)), random_state=seed)
    columns = columns_of(rows, {feature.name: feature.kind for feature in model.spec.features})
    return drivers(explain(model, columns), columns)


def randomisation_checks(campaign: Campaign, frame: pd.DataFrame, schema: FeatureSchema) -> pd.DataFrame:
    """`check_log` on the training frame: shares of arms overall and by segment, weights, balance of every feature."""
    covariates = frame[[name for name in schema.views if schema.types[name] == "numeric"]]
    return check_log(frame, covariates=covariates, segments=campaign.segments.columns)


def fit_spec(campaign: Campaign, schema: FeatureSchema) -> FitSpec:
    """What the network is told: the feature service's columns, the campaign's arms and outcomes."""
    return FitSpec(
        features={name: schema.types[name] for name in schema.names},  # type: ignore[misc]  # numeric | string
        arms=campaign.arm_names,
        outcomes=campaign.outcome,
        outcome_prefix="y_",
        costs=campaign.costs,
        propensity="propensity",
        unit="user_id",
        seed=campaign.training.seed,
        members=campaign.training.members,
    )


def _rows(rows: np.ndarray, frame: pd.DataFrame, mu_hat: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    return frame[rows].reset_index(drop=True), mu_hat[rows]


def values_text(values: pd.DataFrame, currency: str) -> str:
    """The headline as aligned text, money per user and window."""
    rows = [
        f"  {row.policy:<18} {row.value:8.4f}  [{row.ci_lower:8.4f}, {row.ci_upper:8.4f}]"
        for row in headline(values).itertuples()
    ]
    return "\n".join([f"value, {currency} per user and window, 95% interval:", *rows])


def _predictions(campaign: Campaign, mu_hat: np.ndarray, choice: Choice) -> pd.DataFrame:
    weights = dict(zip(campaign.outcome_names, campaign.weights, strict=True))
    return prediction_columns(mu_hat, campaign.arm_names, weights, campaign.costs, choice.threshold)


def data_window(frame: pd.DataFrame) -> dict[str, Any]:
    """First and last decision that a model was made of, and how many there were."""
    return {"from": str(frame["decided_at"].min()), "to": str(frame["decided_at"].max()), "n": len(frame)}


def _extra(campaign: Campaign, schema: FeatureSchema, choice: Choice, values: pd.DataFrame) -> dict[str, Any]:
    """The keys of model.json that the network does not know: what it answers, from which data, how well."""
    weighted = headline(values)
    return {
        "campaign": campaign.name,
        "campaign_hash": campaign.hash,
        "feature_service": schema.service,
        "feature_schema_hash": schema.hash,
        "policy": {"threshold": min(float(choice.threshold), SEND_NOTHING), "reason": choice.reason},
        "metrics": {row.policy: {"value": row.value, "se": row.se} for row in weighted.itertuples()},
        "versions": {"numpy": np.__version__, "pandas": pd.__version__},
    }


def _check_splits(frame: pd.DataFrame) -> None:
    counts = frame["split"].value_counts().to_dict()
    short = {name: counts.get(name, 0) for name in ("train", "select", "evaluate") if counts.get(name, 0) < MIN_ROWS}
    if short:
        raise DataError(
            f"too few matured decisions: {counts} by split, need at least {MIN_ROWS} in each; "
            "wait for more to mature, or change [splits] in campaign.toml"
        )
