"""The gate applied: the challenger's and the champion's policies on the same held-out decisions, then the pointer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from campaign import Campaign, DataError, ModelError
from feature_repo.atomic import write_json
from models.forward import NumpyModel
from models.predictions import mu_hat_of
from models.registry import model_path, promote, read_pointer
from monitoring.gate import GateVerdict, judge
from monitoring.inputs import model_predictions


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
        return "\n".join([f"{self.tag}: {said}", *reasons, f"champion: {self.champion or 'none'}"])


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
    """Judge on the challenger's `evaluate` users: no model was trained on them, no threshold chosen with them."""
    file = data / "reports" / tag.replace(":", "-") / "frame.parquet"
    if not file.exists():
        raise ModelError(f"{file}: the rows {tag} was judged on are gone; run `tactful train` again")
    frame = pd.read_parquet(file)
    frame = frame[frame["split"] == "evaluate"].reset_index(drop=True)
    policies = {"challenger": frame["policy_arm"].to_numpy()}
    policies |= {name.removeprefix("arm_of_"): frame[name].to_numpy() for name in frame.filter(like="arm_of_").columns}
    if champion is not None:
        model = NumpyModel.load(model_path(champion))
        policies["champion"] = model_predictions(frame, campaign, model)["policy_arm"].to_numpy()
    return judge(frame, policies, mu_hat_of(frame, campaign.arm_names, campaign.outcome_names), campaign)


def last_decision(monitoring_dir: Path) -> dict[str, Any]:
    """The newest week's decision.json (DataError: there is none)."""
    files = sorted(monitoring_dir.glob("*-W*/decision.json"))
    if not files:
        raise DataError(f"{monitoring_dir}: no weekly decision yet; run `tactful monitor`")
    found: dict[str, Any] = json.loads(files[-1].read_text(encoding="utf-8"))
    return found
