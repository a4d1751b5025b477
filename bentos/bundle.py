"""A loaded champion: model folder in, network and policy out, checked before it may serve. numpy only, no torch.

Shape:
    n users, A arms (0 = control), O outcomes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bentos.forward import SMALL, SmallBatch
from campaign import Campaign, ModelError
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
    """A loaded champion: the network and the policy that was chosen for it.

    `data_until` is the end of the data it learned from, seconds since 1970; NaN where model.json does not say.
    """

    tag: str
    model: NumpyModel
    threshold: float
    feature_service: str
    schema_hash: str
    campaign_hash: str
    policy_hash: str
    small: SmallBatch | None = None
    data_until: float = float("nan")

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
        """What an outcome is worth, money a unit; shape (O,)."""
        return self.model.spec.weights

    @cached_property
    def message_costs(self) -> np.ndarray:
        """Cost of each message, money; shape (A - 1,)."""
        return np.array(self.model.spec.costs)[1:]

    def mu_hat(self, rows: Rows) -> np.ndarray:
        """Expected outcome under every arm; shape (n, A, O)."""
        if len(rows.status) < SMALL and self.small is not None:
            return self.small.predict(rows.numeric, rows.strings)
        columns = {name: rows.numeric[:, j] for j, name in enumerate(self.numeric)}
        columns |= {name: rows.strings[:, j] for j, name in enumerate(self.strings)}
        return self.model.predict(columns)


def load_bundle(tag: str, folder: Path, campaign: Campaign) -> Bundle:
    """Load a model folder and check that it fits this campaign and answers its probe.

    Raises: ModelError: unreadable, no policy, other arms or outcomes, or its answers are not those stored.
    """
    try:
        return _load(tag, folder, campaign)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"{tag}: {folder} is not what this version saves ({error!r}); promote another, or train again with "
            "`tactful train`"
        ) from None


def _load(tag: str, folder: Path, campaign: Campaign) -> Bundle:
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
    # an infinite threshold messages nobody
    if len(spec.costs) != len(spec.arms) or np.isnan(threshold) or not np.isfinite([*spec.costs, *spec.weights]).all():
        raise ModelError(
            f"{tag}: threshold == {threshold}, costs == {list(spec.costs)}, weights == {spec.weights.tolist()}; must "
            f"be numbers, with a cost for each of {list(spec.arms)}; train again with `tactful train`"
        )
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
        _data_until(extra),
    )
    probe(bundle, folder / "probe.json")
    return bundle


def _data_until(extra: Mapping[str, Any]) -> float:
    until = extra.get("data_window", {}).get("to")
    return datetime.fromisoformat(until).replace(tzinfo=UTC).timestamp() if until else float("nan")


def probe(bundle: Bundle, stored: Path, tolerance: float = 1e-5) -> None:
    """Ask the model for known answers before it may serve (ModelError: not finite, or not what was stored).

    Args:
        bundle: the model.
        stored: probe.json written by `write_probe`; without it only an empty row is asked.
        tolerance: of an outcome's largest stored answer, or of 1 where that is less; float32 sums in another order
            differ by about 1e-7 of it, and an outcome may count hundreds of tracks.
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
    expected = np.array(raw["mu_hat"])
    allowed = tolerance * np.maximum(1.0, np.abs(expected).max(axis=(0, 1)))
    n = len(expected)
    numeric = np.array([columns[name] for name in bundle.numeric], dtype=np.float64).reshape(-1, n).T
    strings = np.array([columns[name] for name in bundle.strings], dtype=object).reshape(-1, n).T
    few = bundle.mu_hat(Rows(numeric, strings, np.full(n, OK), np.zeros(n, dtype=np.int64)))
    for answer in (bundle.model.predict(columns), few):  # what many users are answered with, and a few
        if answer.shape == expected.shape and (np.abs(answer - expected) <= allowed).all():
            continue
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
