"""One user explained: what the service would answer now, and which features moved the score. Nothing is logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from bentos.advice import advice
from bentos.assignment import LAYERS
from bentos.bundle import Rows
from bentos.champion import Champion, Serving
from bentos.engine import decide
from bentos.experiments import with_experiments
from bentos.features import Ask, Reader
from bentos.settings import Settings
from bentos.worker import Worker
from campaign import Campaign, ModelError
from feature_repo.contracts import MEANING, REASONS
from models.explain import BACKGROUND, explain
from models.forward import NumpyModel
from models.words import number

SHOWN = 10  # features listed one by one
NO_THRESHOLD = 1e300  # thresholds from here on send nothing


@dataclass(frozen=True)
class Moved:
    """One feature: its value for the user, and by how much it moved the score, money."""

    feature: str
    value: float | str | None
    contribution: float


@dataclass(frozen=True)
class UserExplanation:
    """What `tactful explain` says. Money per user and window, in `currency`.

    `score`, `baseline`, `features`: where a score was predicted.
    `advice`: why the features could not be used, and what to do; empty where they could.
    `interval`: 90%, of the score of the explained arm; None where the model was saved before intervals were.
    """

    user_id: str
    model: str
    eligible: bool
    arm: str
    explained_arm: str | None
    reason: str
    layer: str
    score: float | None
    interval: tuple[float, float] | None
    threshold: float
    baseline: float | None
    uplift: dict[str, dict[str, float]] | None
    features_as_of: str | None
    features: tuple[Moved, ...]
    advice: str
    currency: str

    def as_dict(self) -> dict[str, Any]:
        """For a machine."""
        return asdict(self)

    def text(self) -> str:
        """For a person."""
        answer = f"eligible for {self.arm}" if self.eligible else "not eligible"
        lines = [f"user {self.user_id}: {answer}: {self.reason} ({MEANING[self.reason]})"]
        lines.append(f"model {self.model}, layer {self.layer}, features as of {self.features_as_of or 'never'}")
        if self.score is None or self.baseline is None:
            return "\n".join([*lines, *(f"-> {line}" for line in self.advice.splitlines())])
        above = "above" if self.score > self.threshold else "not above"
        limit = "none passed its guardrails" if self.threshold >= NO_THRESHOLD else f"{self.threshold:.4f}"
        told = f" (90% interval {self.interval[0]:+.4f} to {self.interval[1]:+.4f})" if self.interval else ""
        lines += [
            "",
            f"score of {self.explained_arm}: {self.score:+.4f} {self.currency}{told}, {above} the threshold ({limit}):",
        ]
        parts = (self.uplift or {}).get(str(self.explained_arm), {})
        lines += [f"  {name} {uplift:+.4f} per user" for name, uplift in parts.items()]
        lines += ["", f"What moved the score, {self.currency}:", *_rows(self.features, self.baseline, self.score)]
        return "\n".join(lines)


def explain_user(
    user_id: str, campaign: Campaign, *, hour: int | None, surface: str | None, now: datetime
) -> UserExplanation:
    """Read the user's features from the online store, decide as the service would, explain the best message's score.

    Raises: ModelError: no champion can be loaded. StoreError, TimeoutError: the feature store does not answer.
    """
    serving = _serving(campaign)
    bundle, reader = serving.bundle, serving.reader
    if bundle is None or reader is None:
        raise ModelError("no champion; run `tactful train`, then `tactful promote`")
    rows = asyncio.run(_read_once(reader, Ask("explain", [user_id], hour, surface), now))
    decided = decide([user_id], rows, bundle, campaign.assignment, now.date())
    if serving.live.experiments:
        decided = with_experiments([user_id], rows, bundle, campaign.assignment, decided, serving.live, now)
    spec, predicted = bundle.model.spec, bool(np.isfinite(decided.score[0]))
    columns = columns_of_rows(rows, bundle.numeric, bundle.strings) if predicted else {}
    moved, baseline, arm = moved_by(bundle.model, columns) if predicted else ((), None, None)
    at = int(rows.timestamp[0])
    return UserExplanation(
        user_id,
        bundle.tag,
        bool(decided.arm[0] > 0),
        spec.arms[int(decided.arm[0])],
        arm,
        REASONS[int(decided.reason[0])],
        LAYERS[int(decided.layer[0])],
        float(decided.score[0]) if predicted else None,
        _interval(bundle.model, columns, arm) if arm is not None else None,
        bundle.threshold,
        baseline,
        _by_outcome(bundle.model, decided.uplift[0]) if predicted else None,
        datetime.fromtimestamp(at / 1e6, UTC).isoformat(timespec="minutes") if at else None,
        moved,
        advice(user_id, REASONS[int(decided.reason[0])], now),
        campaign.currency,
    )


def moved_by(model: NumpyModel, columns: Mapping[str, np.ndarray]) -> tuple[tuple[Moved, ...], float, str]:
    """Features of one user by how much they moved the score, the baseline, and the message explained (the best)."""
    explained = explain(model, columns)
    ranked = explained.top(0, len(explained.features))
    moved = tuple(Moved(name, _plain(columns[name][0]), part) for name, part in ranked)
    return moved, float(explained.baseline[0]), model.spec.arms[int(explained.arm[0])]


def _interval(model: NumpyModel, columns: Mapping[str, np.ndarray], arm: str) -> tuple[float, float] | None:
    """90% limits of the score of one message for one user."""
    if "interval.covariance" not in model.tensors:
        return None
    lower, upper = (limit[0, model.spec.arms.index(arm) - 1, -1] for limit in model.interval(columns))
    return float(lower), float(upper)


def columns_of_rows(rows: Rows, numeric: Sequence[str], strings: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of the model from rows that were read."""
    columns = {name: rows.numeric[:, j] for j, name in enumerate(numeric)}
    return columns | {name: rows.strings[:, j] for j, name in enumerate(strings)}


def explain_logged(
    model: NumpyModel, features: Mapping[str, float | str | None]
) -> tuple[tuple[Moved, ...], float, str]:
    """`moved_by` for the feature values of a logged decision."""
    columns: dict[str, np.ndarray] = {}
    for feature in model.spec.features:
        value = features.get(feature.name)
        if feature.kind == "numeric":
            columns[feature.name] = np.array([np.nan if value is None else value], dtype=np.float64)
        else:
            columns[feature.name] = np.array([value], dtype=object)
    return moved_by(model, columns)


async def _read_once(reader: Reader, ask: Ask, now: datetime) -> Rows:
    """Read and close in one event loop: a connection to Redis cannot be closed after its loop."""
    try:
        return await reader.read([ask], now)
    finally:
        reader.close()


def _serving(campaign: Campaign) -> Serving:
    """What a worker of the service would serve with at this moment."""
    logging.getLogger("tactful").addHandler(logging.NullHandler())  # what fails is raised here, not logged as well
    worker = Worker()
    worker.settings = Settings.from_environ()
    champion = Champion(campaign, worker.open_reader)
    champion.follow(0.0)
    if champion.error is not None:
        raise ModelError(champion.error)
    return champion.serving


def _by_outcome(model: NumpyModel, uplift: np.ndarray) -> dict[str, dict[str, float]]:
    names, arms = [outcome.name for outcome in model.spec.outcomes], model.spec.arms[1:]
    return {arm: dict(zip(names, row, strict=True)) for arm, row in zip(arms, uplift.tolist(), strict=True)}


def _rows(moved: Sequence[Moved], baseline: float, score: float) -> list[str]:
    """From the average training user down to this one, aligned."""
    rows = [(f"average of {BACKGROUND} training users", "", baseline)]
    rows += [(m.feature, told(m.value), m.contribution) for m in moved[:SHOWN]]
    if len(moved) > SHOWN:
        rows.append((f"the other {len(moved) - SHOWN} features", "", sum(m.contribution for m in moved[SHOWN:])))
    rows.append(("score", "", score))
    wide, value = max(len(name) for name, _, _ in rows), max(len(text) for _, text, _ in rows)
    return [f"  {name:<{wide}}  {text:>{value}}  {part:+.4f}" for name, text, part in rows]


def told(value: float | str | None) -> str:
    """A feature's value for people: four digits, no exponents."""
    if value is None:
        return "not known"
    if isinstance(value, str):
        return value
    return number(round(value, 6), 4)


def _plain(value: float | str | None) -> float | str | None:
    return None if value is None or value != value else value if isinstance(value, str) else float(value)
