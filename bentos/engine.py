"""Decisions from features, numpy only: model folder in, arms and reasons out. No server, no store, no torch.

Shape:
    n users, A arms (0 = control), O outcomes. uplift (n, A - 1, O) in outcome units; score (n, A - 1) in EUR.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bentos import assignment as assign
from bentos.forward import SMALL, SmallBatch
from campaign import Assignment, Campaign, ModelError
from feature_repo.atomic import write_json
from feature_repo.contracts import REASONS
from models.forward import NumpyModel

CODE = {reason: code for code, reason in enumerate(REASONS)}
OK = -1  # status of a user whose features are all there; any other status is the code of a reason


@dataclass(frozen=True)
class Rows:
    """Features of n users in the model's order, and whether they can be used.

    Args:
        numeric: float64 (n, n_numeric), NaN = not known.
        strings: object (n, n_strings), None = not known.
        status: int64 (n,): OK, or the code of the reason why not.
        timestamp: int64 (n,): event time of the oldest feature view used, microseconds since 1970; 0 = none.
    """

    numeric: np.ndarray
    strings: np.ndarray
    status: np.ndarray
    timestamp: np.ndarray


@dataclass(frozen=True)
class Bundle:
    """A loaded champion: the network and the policy that was chosen for it."""

    tag: str
    model: NumpyModel
    threshold: float
    feature_service: str
    schema_hash: str
    campaign_hash: str
    policy_hash: str
    small: SmallBatch | None = None

    @property
    def numeric(self) -> tuple[str, ...]:
        """Names of the numeric features, in the order of `Rows.numeric`."""
        return tuple(f.name for f in self.model.spec.features if f.kind == "numeric")

    @property
    def strings(self) -> tuple[str, ...]:
        """Names of the string features, in the order of `Rows.strings`."""
        return tuple(f.name for f in self.model.spec.features if f.kind == "string")

    @cached_property
    def weights(self) -> np.ndarray:
        """What an outcome is worth, EUR a unit; shape (O,)."""
        return self.model.spec.weights

    @cached_property
    def message_costs(self) -> np.ndarray:
        """Cost of each message, EUR; shape (A - 1,)."""
        return np.array(self.model.spec.costs)[1:]

    def mu_hat(self, rows: Rows) -> np.ndarray:
        """Expected outcome under every arm; shape (n, A, O)."""
        if len(rows.status) < SMALL and self.small is not None:
            return self.small.predict(rows.numeric, rows.strings)
        columns = {name: rows.numeric[:, j] for j, name in enumerate(self.numeric)}
        columns |= {name: rows.strings[:, j] for j, name in enumerate(self.strings)}
        return self.model.predict(columns)


@dataclass(frozen=True)
class Decisions:
    """What was decided for n users; uplift and score are NaN where nothing was predicted.

    Args:
        layer: (n,) index into assignment.LAYERS.
        arm: (n,) index of the arm.
        reason: (n,) index into REASONS.
        uplift: (n, A - 1, O).
        score: (n,) of the best message arm, EUR.
        propensities: (n, A).
        enrolled: while an experiment runs, per user and whatever the layer: [the champion's arm], and where an
            experiment owns the user's slot also its number, the number of the variant, the arm of every variant.
    """

    layer: np.ndarray
    arm: np.ndarray
    reason: np.ndarray
    uplift: np.ndarray
    score: np.ndarray
    propensities: np.ndarray
    enrolled: list[list[Any]] | None = None


def load_bundle(tag: str, folder: Path, campaign: Campaign) -> Bundle:
    """Load a model folder and check that it fits this campaign and answers its probe.

    Raises: ModelError: unreadable, no policy, other arms or outcomes, or its answers are not those stored.
    """
    model = NumpyModel.load(folder)
    spec, extra = model.spec, model.spec.extra
    if tuple(spec.arms) != campaign.arm_names or tuple(o.name for o in spec.outcomes) != campaign.outcome_names:
        raise ModelError(
            f"{tag}: has arms {list(spec.arms)} and outcomes {[o.name for o in spec.outcomes]}, campaign.toml has "
            f"{list(campaign.arm_names)} and {list(campaign.outcome_names)}; train again"
        )
    try:
        threshold = float(extra["policy"]["threshold"])
        keys = {key: str(extra[key]) for key in ("feature_service", "feature_schema_hash", "campaign_hash")}
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{tag}: model.json has no usable {error}; train again with `tactful train`") from None
    policy = {"threshold": threshold, "weights": spec.weights.tolist(), "costs": list(spec.costs), "model": tag}
    policy_hash = hashlib.sha256(json.dumps(policy, sort_keys=True).encode()).hexdigest()[:16]
    bundle = Bundle(
        tag,
        model,
        threshold,
        keys["feature_service"],
        keys["feature_schema_hash"],
        keys["campaign_hash"],
        policy_hash,
        SmallBatch(model),
    )
    probe(bundle, folder / "probe.json")
    return bundle


def probe(bundle: Bundle, stored: Path, tolerance: float = 1e-5) -> None:
    """Ask the model for known answers before it may serve (ModelError: not finite, or not what was stored).

    Args:
        bundle: the model.
        stored: probe.json written by `write_probe`; without it only an empty row is asked.
        tolerance: in outcome units; float32 sums differ between processors by about 1e-7.
    """
    if not stored.exists():
        empty = Rows(
            np.full((1, len(bundle.numeric)), np.nan),
            np.full((1, len(bundle.strings)), None, dtype=object),
            np.full(1, OK),
            np.zeros(1, dtype=np.int64),
        )
        if not np.isfinite(bundle.mu_hat(empty)).all():
            raise ModelError(f"{bundle.tag}: its answer to an empty row is not finite; train again")
        return
    raw = json.loads(stored.read_text(encoding="utf-8"))
    columns = {
        f.name: np.array(raw["columns"][f.name], dtype=np.float64 if f.kind == "numeric" else object)
        for f in bundle.model.spec.features
    }
    answer, expected = bundle.model.predict(columns), np.array(raw["mu_hat"])
    if answer.shape != expected.shape or not np.allclose(answer, expected, rtol=0, atol=tolerance):
        raise ModelError(
            f"{bundle.tag}: its answers differ from those stored in probe.json; it is not what was trained; "
            "promote another, or train again with `tactful train`"
        )


def write_probe(folder: Path, model: NumpyModel, columns: Mapping[str, np.ndarray], rows: int = 16) -> None:
    """Store known answers in a model folder (probe.json), before it is packed: what `probe` asks at every load.

    Args:
        folder: the model folder.
        model: the model in it.
        columns: feature name -> column, as `models.spec.columns_of` gives them; the first `rows` rows are kept.
        rows: number of answers stored.
    """
    first = {f.name: columns[f.name][:rows] for f in model.spec.features}
    plain = {n: [None if v is None or v != v else v for v in column.tolist()] for n, column in first.items()}
    write_json(folder / "probe.json", {"columns": plain, "mu_hat": model.predict(first).tolist()})


def decide(user_ids: Sequence[str], rows: Rows, bundle: Bundle, assignment: Assignment, day: date) -> Decisions:
    """Decide, on a day (UTC), about users whose features were read.

    A user whose features cannot be used gets control for certain (propensity 1), whatever the layer: such rows say
    nothing about arms and are left out of training by their reason.
    """
    spec, usable = bundle.model.spec, rows.status == OK
    if np.count_nonzero(usable) == len(usable):
        mu_hat = bundle.mu_hat(rows)
    else:
        mu_hat = np.full((len(user_ids), len(spec.arms), len(spec.outcomes)), np.nan)
        if usable.any():
            mu_hat[usable] = bundle.mu_hat(_take(rows, usable))
    uplift = mu_hat[:, 1:] - mu_hat[:, :1]
    scores = uplift @ bundle.weights - bundle.message_costs
    if np.count_nonzero(np.isfinite(uplift)) == uplift.size:
        if len(user_ids) == 1:
            return _assign_one(user_ids[0], uplift, scores, bundle.threshold, assignment, day)
        return _assign(user_ids, rows.status, uplift, scores, bundle.threshold, assignment, day)
    finite = np.isfinite(uplift).all(axis=(1, 2))
    status = np.where(finite | ~usable, rows.status, CODE["model_unavailable"])
    return _assign(user_ids, status, uplift, scores, bundle.threshold, assignment, day)


def decide_without_model(user_ids: Sequence[str], campaign: Campaign, day: date) -> Decisions:
    """Control for everybody: there is no model to ask."""
    n, n_arms = len(user_ids), len(campaign.arm)
    nothing = np.full((n, n_arms - 1, len(campaign.outcome)), np.nan)
    status = np.full(n, CODE["model_unavailable"])
    return _assign(user_ids, status, nothing, nothing[:, :, 0], 0.0, campaign.assignment, day)


def _assign(
    user_ids: Sequence[str],
    status: np.ndarray,
    uplift: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    assignment: Assignment,
    day: date,
) -> Decisions:
    n_arms, usable = scores.shape[1] + 1, status == OK
    if not usable.all():
        uplift, scores = np.where(usable[:, None, None], uplift, np.nan), np.where(usable[:, None], scores, -np.inf)
    score = scores.max(axis=1)
    above = score > threshold
    policy_arm = (scores.argmax(axis=1) + 1) * above
    layer = assign.layers(user_ids, assignment, day)
    arm = policy_arm * (layer != assign.HOLDOUT)
    explored = layer == assign.EXPLORATION
    if explored.any():
        who = np.flatnonzero(explored)
        arm[who] = assign.exploration_arms([user_ids[i] for i in who.tolist()], assignment, n_arms, day)
    reason = _REASON[layer, above.view(np.int8)]
    chance = assign.propensities(policy_arm, assignment, n_arms)
    if usable.all():
        return Decisions(layer, arm, reason, uplift, score, chance)
    certain = np.where(usable[:, None], chance, np.eye(1, n_arms))
    score, reason = np.where(usable, score, np.nan), np.where(usable, reason, status)
    return Decisions(layer, arm * usable, reason, uplift, score, certain)


def _assign_one(
    user_id: str, uplift: np.ndarray, scores: np.ndarray, threshold: float, assignment: Assignment, day: date
) -> Decisions:
    """`_assign` of one usable user: arrays of one cost three times the arithmetic (a test compares the two)."""
    values: list[float] = scores[0].tolist()
    score = max(values)
    above = score > threshold
    policy_arm = arm = (values.index(score) + 1) * above
    layer = assign.layer(user_id, assignment, day)
    if layer == assign.HOLDOUT:
        arm = 0
    elif layer == assign.EXPLORATION:
        arm = assign.exploration_arms([user_id], assignment, len(values) + 1, day)[0]
    chance = assign.propensities(np.array([policy_arm]), assignment, len(values) + 1)
    return Decisions(
        np.array([layer]), np.array([arm]), _REASON[layer, int(above)][None], uplift, np.array([score]), chance
    )


# by layer, and whether the score is above the threshold; an experiment is applied to the policy's answer afterwards
_REASON = np.array(
    [
        [CODE["holdout"]] * 2,
        [CODE["exploration"]] * 2,
        [CODE["below_threshold"], CODE["eligible"]],
        [CODE["below_threshold"], CODE["eligible"]],
    ]
)


def _take(rows: Rows, which: np.ndarray) -> Rows:
    return Rows(rows.numeric[which], rows.strings[which], rows.status[which], rows.timestamp[which])
