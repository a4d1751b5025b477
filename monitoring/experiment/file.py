"""Experiment files: what runs live, kept as one JSON file per experiment that the service reads.

    experiments/NAME.json     the design (hashed: salts, slots, variants, plan, start) and its state (ramp, on or off)

A user's slot is hash(slot_salt, user) in [0, 1), the same for every experiment of the campaign; an experiment owns an
interval of slots, so no user is in two. The variant is hash(salt, user), with a salt per experiment. Ramping up opens
more of the interval: who was in stays in, in the same variant. The design cannot change once the file is written.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from campaign import CampaignError, validated
from feature_repo.atomic import write_json
from monitoring.experiment.plan import ExperimentPlan

State = Literal["running", "stopped", "ended"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Variant(_Frozen):
    """One policy under test.

    `policy`: send_none; send_all (`arm` for everybody); rule (`arm` where every column of `rule` has one of its
    values); champion (the running model and threshold as they are); threshold (the running model's uplift with this
    variant's own `threshold` in money, and its own `weights` per outcome in money when given).
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    policy: Literal["send_none", "send_all", "rule", "champion", "threshold"]
    share: float = Field(gt=0, le=1)
    arm: int = Field(default=1, ge=1)
    rule: dict[str, tuple[str, ...]] | None = None
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    weights: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Variant:
        if (self.policy == "rule") != bool(self.rule):
            raise ValueError(f"rule == {self.rule} with policy == {self.policy!r}: only a rule policy has a rule")
        if (self.policy == "threshold") != (self.threshold is not None):
            raise ValueError(f"threshold == {self.threshold} with policy == {self.policy!r}: only that policy has one")
        if self.weights is not None and self.policy != "threshold":
            raise ValueError(f"weights == {self.weights} with policy == {self.policy!r}, must be policy 'threshold'")
        return self


class Forecast(_Frozen):
    """What offline evaluation predicts for a candidate: difference to control, absolute, with its 95% interval."""

    variant: str
    metric: str
    value: float = Field(allow_inf_nan=False)
    ci_lower: float = Field(allow_inf_nan=False)
    ci_upper: float = Field(allow_inf_nan=False)
    model_tag: str = ""

    @model_validator(mode="after")
    def _check(self) -> Forecast:
        if not self.ci_lower < self.ci_upper or not self.ci_lower <= self.value <= self.ci_upper:
            raise ValueError(
                f"value == {self.value:g}, must lie in its interval [{self.ci_lower:g}, {self.ci_upper:g}]"
            )
        return self


class Change(_Frozen):
    """One change of state, kept for the record."""

    at: datetime
    state: State
    ramp: float


class Experiment(_Frozen):
    """A live experiment: the design, fixed, and its state.

    `slots`: interval of the slot space that is reserved; `ramp`: part of it that is open, 0 to 1; variant shares are
    of enrolled users and sum to 1. Enrolled are users outside the holdout and the exploration layer. `plan` is how it
    will be read, `forecast` what offline evaluation expects; both are written down before the first user.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    campaign_hash: str
    salt: str = Field(min_length=1)
    slot_salt: str = Field(min_length=1)
    slots: tuple[float, float]
    variants: tuple[Variant, ...]
    starts_at: datetime
    plan: ExperimentPlan
    forecast: tuple[Forecast, ...] = ()
    state: State = "running"
    ramp: float = Field(default=1.0, gt=0, le=1)
    history: tuple[Change, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        if not 0 <= self.slots[0] < self.slots[1] <= 1 + 1e-12:
            raise ValueError(f"slots == {list(self.slots)}, must be an interval in [0, 1]: shares over 1 do not fit")
        total = sum(v.share for v in self.variants)
        if abs(total - 1) > 1e-9:
            raise ValueError(f"variant shares sum == {total:g}, must be 1: they are shares of the enrolled users")
        names = tuple(v.name for v in self.variants)
        if names != self.plan.variants:
            raise ValueError(f"variant names == {list(names)}, must be those of the plan: {list(self.plan.variants)}")
        planned = [share / sum(self.plan.variant_shares) for share in self.plan.variant_shares]
        if any(abs(v.share - p) > 1e-9 for v, p in zip(self.variants, planned, strict=True)):
            raise ValueError(
                f"variant shares == {[v.share for v in self.variants]}, must be those of the plan: {planned}"
            )
        metrics = [m.name for m in self.plan.metric]
        if unknown := [f for f in self.forecast if f.metric not in metrics or f.variant not in names[1:]]:
            raise ValueError(
                f"forecast: variant == {unknown[0].variant!r}, metric == {unknown[0].metric!r}, must be a treatment of "
                f"{list(names[1:])} and a metric of {metrics}"
            )
        if self.salt == self.slot_salt:
            raise ValueError(f"salt == slot_salt == {self.salt!r}: one salt per draw, or variants depend on slots")
        if self.starts_at.tzinfo is None:
            raise ValueError(f"starts_at == {self.starts_at.isoformat()}, must have a time zone")
        return self

    @property
    def hash(self) -> str:
        """Hash of the design: 16 hex digits; state, ramp and history are not part of it."""
        design = self.model_dump(mode="json", exclude={"state", "ramp", "history"})
        return hashlib.sha256(json.dumps(design, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def open_slots(self) -> tuple[float, float]:
        """Slots whose users are enrolled; empty while the experiment is off."""
        start, end = self.slots
        return (start, start + self.ramp * (end - start)) if self.state == "running" else (start, start)

    def text(self) -> str:
        """How it stands, in words."""
        share = self.slots[1] - self.slots[0]
        variants = ", ".join(f"{v.name} {v.share:.1%}" for v in self.variants)
        return (
            f"experiment {self.name}: {self.state}, {self.ramp:.0%} of its {share:.1%} of users enrolled ({variants}), "
            f"from {self.starts_at:%Y-%m-%d %H:%M} UTC, planned for {self.plan.last_users or 'any number of'} users"
        )

    def is_on(self, now: datetime) -> bool:
        """Whether users are assigned at this instant."""
        return self.state == "running" and now >= self.starts_at


def write_experiment(folder: Path, experiment: Experiment) -> Path:
    """Write or update an experiment's file, atomically.

    Raises: CampaignError: the design differs from the one that started, the ramp goes down, or slots overlap.
    """
    target = folder / f"{experiment.name}.json"
    if target.exists():
        _check_same_design(read_experiment_file(target), experiment)
    for other in read_experiments(folder):
        if other.name != experiment.name and "ended" not in (other.state, experiment.state):
            _check_disjoint(other, experiment)
    write_json(target, {"schema": 1, "hash": experiment.hash, **experiment.model_dump(mode="json")})
    return target


def _check_same_design(old: Experiment, new: Experiment) -> None:
    if old.hash != new.hash:
        before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
        key = next(k for k in before if k not in ("state", "ramp", "history") and before[k] != after[k])
        raise CampaignError(
            f"experiment {old.name}: {key} == {after[key]!r}, was {before[key]!r} when it started; it cannot change "
            "mid-flight, because users would move between variants. End it "
            f"(`tactful experiment change {old.name} --state ended`) and start one with a new name"
        )
    if old.state == "ended" and new.state != "ended":
        raise CampaignError(f"experiment {old.name}: has ended and its slots are free; plan one with a new name")
    if new.ramp < old.ramp:
        raise CampaignError(
            f"experiment {old.name}: ramp == {new.ramp:g}, is {old.ramp:g} now; a ramp only goes up, because users who "
            "were enrolled would leave. Stop it instead: all its users get the champion at once"
        )


def _check_disjoint(old: Experiment, new: Experiment) -> None:
    if old.slot_salt != new.slot_salt:
        raise CampaignError(
            f"experiments {old.name} and {new.name}: slot_salt {old.slot_salt!r} and {new.slot_salt!r} differ, so "
            "users could be in both; all experiments of a campaign share one slot_salt"
        )
    low, high = max(old.slots[0], new.slots[0]), min(old.slots[1], new.slots[1])
    if low < high - 1e-12:
        raise CampaignError(
            f"experiments {old.name} and {new.name}: overlap in slots {low:g} to {high:g}, so users would be in both; "
            f"end {old.name}, or give {new.name} other slots"
        )


def change_state(
    folder: Path, name: str, now: datetime, *, state: State | None = None, ramp: float | None = None
) -> Experiment:
    """Ramp up, stop at once ("stopped"), go back ("running") or end an experiment for good ("ended")."""
    old = read_experiment_file(folder / f"{name}.json")
    state, ramp = state or old.state, old.ramp if ramp is None else ramp
    values = old.model_dump(mode="json")
    values |= {"state": state, "ramp": ramp}
    values["history"].append({"at": now, "state": state, "ramp": ramp})
    new = validated(Experiment, values, Path(f"experiment {name}"))
    write_experiment(folder, new)
    return new


def read_experiment_file(file: Path) -> Experiment:
    """Read one experiment.

    Raises: CampaignError: missing, unreadable, not a JSON object, or its design was edited after it was written (the
            hash differs).
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in file.parent.glob("*.json"))) or "none"
        raise CampaignError(f"{file}: no such experiment; experiments there: {known}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CampaignError(f"{file}: not valid JSON: {error}; restore it, or delete it and plan a new one") from None
    except OSError as error:
        raise CampaignError(
            f"{file}: cannot be read: {error.strerror}; expected one JSON file per experiment"
        ) from None
    if not isinstance(values, dict):
        raise CampaignError(
            f"{file}: holds a JSON {type(values).__name__}, expected an object as `tactful experiment plan` writes it; "
            "restore it, or delete it and plan a new one"
        )
    stored = values.pop("hash", None)
    values.pop("schema", None)
    experiment = validated(Experiment, values, file)
    if experiment.hash != stored:
        raise CampaignError(
            f"{file}: hash == {stored}, its content gives {experiment.hash}: salts, slots, variants or plan were "
            "edited after the start. Restore the file, or end the experiment and start one with a new name"
        )
    return experiment


def read_experiments(folder: Path) -> list[Experiment]:
    """Every experiment of a folder, by name; none when there is no folder."""
    return [read_experiment_file(file) for file in sorted(folder.glob("*.json"))]
