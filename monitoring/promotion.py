"""The gate applied: judge a challenger, move the pointer; and fall back from a champion that does harm.

Promotions, retrainings and rollbacks exclude each other (`changing_champion`), so a challenger is judged against the
champion it replaces. The pointer itself is replaced by one rename: killed at any moment, it is the old one or the new.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from campaign import Campaign, DataError, ModelError
from feature_repo.atomic import locked, write_json
from feature_repo.store import feature_schema, open_store
from models.forward import NumpyModel
from models.predictions import mu_hat_of
from models.registry import model_path, pack, promote, read_pointer, rollback
from models.verdicts import broken_weeks, in_weeks, last_verdict, told
from models.worth import SEND_NOTHING, rival_policies
from monitoring.gate import GateVerdict, judge
from monitoring.inputs import matured_frame, model_predictions, not_trained_on, require_features
from monitoring.realised import measure_realised

CERTAIN = 1.645  # standard errors above 0, one-sided 95%


@dataclass(frozen=True)
class Promotion:
    """What the gate said and who is champion now; `gate` is None where it was skipped."""

    tag: str
    champion: str | None
    promoted: bool
    gate: GateVerdict | None

    def summary(self) -> dict[str, Any]:
        """What a machine reads."""
        gate = self.gate.as_dict() if self.gate else None
        return {"tag": self.tag, "champion": self.champion, "promoted": self.promoted, "gate": gate}

    def text(self) -> str:
        """What a person reads."""
        if self.gate is None and not self.promoted:
            return f"{self.tag}: is the champion already"
        said = "gate skipped" if self.gate is None else f"gate: {self.gate.verdict}"
        reasons = [f"  - {reason}" for reason in self.gate.reasons] if self.gate else []
        champion = self.champion or f"none; `tactful promote {self.tag} --force` would make it so all the same"
        return "\n".join([f"{self.tag}: {said}", *reasons, f"champion: {champion}"])


@contextmanager
def changing_champion(data: Path) -> Iterator[None]:
    """Hold while a champion is judged or replaced (StoreError: another process does)."""
    busy = "a promotion, rollback or retraining is running already; wait until it is done"
    with locked(data / "registry" / ".changing", busy):
        yield


def promote_challenger(campaign: Campaign, data: Path, tag: str | None, *, force: bool, now: datetime) -> Promotion:
    """Judge a challenger and, where the gate allows it (or is skipped), make it the champion.

    Args:
        campaign: guardrails and margins.
        data: data folder; the challenger's rows are read from reports/.
        tag: a packed model; None means the newest challenger.
        force: skip the gate.
        now: written into the history.

    Raises: ModelError: there is no challenger, or its report folder is gone.
    """
    pointer = read_pointer()
    tag = tag or pointer.challenger or pointer.champion
    if tag is None:
        raise ModelError("no challenger to promote; run `tactful train`")
    if tag == pointer.champion:
        return Promotion(tag, tag, False, None)
    gate = None if force else run_gate(campaign, data, tag, pointer.champion)
    promoted = gate is None or gate.verdict == "promote"
    if gate is not None:
        write_json(data / "registry" / "gates" / f"{tag.replace(':', '-')}.json", gate.as_dict())
    if promoted:
        reason = "gate skipped by hand" if gate is None else "; ".join(gate.reasons)
        promote(tag, reason, at=now.isoformat())
    return Promotion(tag, read_pointer().champion, promoted, gate)


def run_gate(campaign: Campaign, data: Path, tag: str, champion: str | None) -> GateVerdict:
    """Judge on recent decisions that neither model was trained on, nor the challenger's threshold chosen with."""
    file = data / "reports" / tag.replace(":", "-") / "gate.parquet"
    if not file.exists():
        raise ModelError(f"{file}: the rows {tag} was judged on are gone; run `tactful train` again")
    frame = pd.read_parquet(file)
    broken = broken_weeks(data / "monitoring")
    frame = frame[~in_weeks(frame["decided_at"], broken)].reset_index(drop=True)  # a verdict may be newer than the rows
    policies = {}
    if champion is not None:
        model, theirs = NumpyModel.load(model_path(champion)), NumpyModel.load(model_path(tag)).spec.features
        require_features(champion, model, {feature.name: feature.kind for feature in theirs})
        frame = frame[not_trained_on(frame, campaign, model)].reset_index(drop=True)
        policies["champion"] = model_predictions(frame, campaign, model)["policy_arm"].to_numpy()
    challenger = policies["challenger"] = frame["policy_arm"].to_numpy()
    held_out = (frame["split"] == "evaluate").to_numpy()
    for name, arm in rival_policies(frame[held_out], campaign, challenger[held_out]).items():
        policies[name] = np.zeros(len(frame), dtype=np.int64)
        policies[name][held_out] = arm
    mu_hat = mu_hat_of(frame, campaign.arm_names, campaign.outcome_names)
    verdict = judge(frame, policies, mu_hat, campaign, held_out=held_out)
    return replace(verdict, reasons=(*verdict.reasons, *told(broken)))


def fall_back(campaign: Campaign, data: Path, reason: str, *, as_of: datetime, now: datetime) -> str:
    """Replace a harmful champion at once: by the one before it where that surely helps, else by sending nothing.

    Sending nothing is the champion's own network with a threshold that no score exceeds: holdout and exploration go on,
    so the next challenger can still be trained and judged.

    Args:
        campaign: as for the gate.
        data: data folder.
        reason: kept in the history.
        as_of: nothing that arrived later is used.
        now: written into the history.

    Returns: the new champion's tag.
    """
    pointer = read_pointer()
    if pointer.champion is None:
        raise ModelError("no champion to fall back from; run `tactful promote`")
    if _sends_nothing(pointer.champion):
        return pointer.champion
    if pointer.previous and _surely_helps(campaign, data, pointer.previous[-1], as_of):
        return str(rollback(f"fallback: {reason}", at=now.isoformat()).champion)
    tag = _silent(pointer.champion, reason)
    # the reports of its twin are its own: same rows, same network
    report, twin = (data / "reports" / name.replace(":", "-") for name in (tag, pointer.champion))
    if twin.exists():
        shutil.copytree(twin, report, dirs_exist_ok=True)
    return str(promote(tag, f"fallback to sending nothing: {reason}", at=now.isoformat()).champion)


def _sends_nothing(tag: str) -> bool:
    return bool(NumpyModel.load(model_path(tag)).spec.extra["policy"]["threshold"] >= SEND_NOTHING)


def _surely_helps(campaign: Campaign, data: Path, tag: str, as_of: datetime) -> bool:
    """Whether a model's policy is better than sending nothing on recent matured decisions, at 95% one-sided."""
    model = NumpyModel.load(model_path(tag))
    if model.spec.extra["feature_schema_hash"] != feature_schema(open_store()).hash:
        return False  # the service would refuse it, and serve the harmful one on
    realised = measure_realised(matured_frame(campaign, data, model, as_of), campaign)
    return realised is not None and realised.gain > CERTAIN * realised.gain_se


def _silent(tag: str, reason: str) -> str:
    """Pack a copy of a model that sends nothing; returns its tag, the same for the same model."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        shutil.copytree(model_path(tag), folder, ignore=shutil.ignore_patterns("model.yaml"))
        spec = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        spec["policy"] = {"threshold": SEND_NOTHING, "reason": f"fallback from {tag}"}
        write_json(folder / "model.json", spec)
        return pack(folder, set_challenger=False)


def last_decision(monitoring_dir: Path) -> dict[str, Any]:
    """The newest week's decision.json (DataError: there is none)."""
    found = last_verdict(monitoring_dir)
    if not found:
        raise DataError(f"{monitoring_dir}: no weekly decision yet; run `tactful monitor`")
    return found
