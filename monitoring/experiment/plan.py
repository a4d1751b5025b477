"""The plan of an experiment: who is compared, on which metrics, and what counts as harm; fixed before the first user.

A PLAN.toml for a plain table of any experiment (one row per user):

    unit = "user_id"
    variant = "variant"                   # column with the variant each user was assigned to
    control = "send_all"
    treatment = "candidate"               # or a list of several candidates
    shares = [0.5, 0.5]                   # of all users: control first; or {send_all = 0.5, candidate = 0.5}
    segments = ["plan"]
    alpha = 0.05                          # success metrics are tested two-sided, guardrails one-sided
    looks = 5                             # planned readings; or shares of planned_users, or numbers of users
    planned_users = 40000                 # users at the last look: the bounds of the looks need it

    [[metric]]
    name = "subscription"                 # column
    kind = "binary"
    role = "success"

    [[metric]]
    name = "retention"
    kind = "binary"
    role = "guardrail"
    direction = "higher"                  # higher is better
    margin = 0.02                         # absolute: a loss up to this is tolerated
    covariate = "retention_before"        # pre-period column, for CUPED
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from campaign import Campaign, read_toml, validated


def _short_direction(value: Any) -> Any:
    return value.removesuffix(" is better") if isinstance(value, str) else value


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _numbers(what: str) -> Any:
    """Validator of a list of finite numbers, or of what else `what` names: one message where a union gives several."""

    def check(value: Any) -> Any:
        listed = [*value.values()] if isinstance(value, dict) else value
        alone = isinstance(value, int) and what.startswith("a number")
        numbers = isinstance(listed, (list, tuple)) and all(
            type(x) in (int, float) and math.isfinite(x) for x in listed
        )
        if value is not None and (isinstance(value, bool) or not (alone or numbers)):
            raise ValueError(f"got {value!r}; expected {what}")
        return _tupled(value)

    return BeforeValidator(check)


def _as_text(value: Any) -> Any:
    """Variants 0 and 1, or false and true, are labels as good as names; bool before int, which it is."""
    return str(value) if isinstance(value, (bool, int)) else value


LISTED = BeforeValidator(_tupled)  # in Python a list is as good as a tuple
BEFORE = "_before"  # a metric's pre-period column is its name with this behind

Column = Annotated[str, Field(min_length=1)]
Label = Annotated[str, BeforeValidator(_as_text)]
Direction = Annotated[Literal["higher", "lower"], BeforeValidator(_short_direction)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Metric(_Frozen):
    """One outcome column: what improving means, and for a guardrail how much loss is tolerated.

    `margin` (everybody) and `segment_margin` (each segment; default `margin`) are absolute, in the metric's unit.
    `covariate` is a column measured before the experiment; it narrows the interval and never moves the expectation.
    """

    name: Column
    kind: Literal["binary", "continuous"]
    role: Literal["success", "guardrail"]
    direction: Direction = "higher"
    margin: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    segment_margin: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    covariate: Column | None = None

    @model_validator(mode="after")
    def _check(self) -> Metric:
        if (self.role == "guardrail") != (self.margin is not None):
            raise ValueError(f"margin == {self.margin} with role == {self.role!r}: guardrails need one, successes none")
        if self.segment_margin is not None and self.margin is None:
            raise ValueError(f"segment_margin == {self.segment_margin:g} without margin: only a guardrail has them")
        return self

    @property
    def sign(self) -> int:
        """+1 when higher is better, -1 when lower is better."""
        return 1 if self.direction == "higher" else -1

    def tolerance(self, segment: str) -> float:
        """Tolerated loss for everybody (segment "") or in one segment; 0 for a success metric."""
        margin = self.margin if segment == "" or self.segment_margin is None else self.segment_margin
        return margin or 0.0


class ExperimentPlan(_Frozen):
    """A validated PLAN.toml; the keys are described in this module's docstring.

    `day` is a column with the day of entry, checked when the table has it. `exposure` is a column with the variant a
    user really got (null: never reached). `trigger` is a bool column, computed identically for every user whatever
    the variant: only users for whom the variants decide differently carry information (see read.Diluted).
    """

    unit: Column = "user_id"
    variant: Column = "variant"
    control: Label = "control"
    treatment: Annotated[Label | tuple[Label, ...], LISTED] = "treatment"
    shares: Annotated[
        tuple[float, ...] | dict[str, float] | None, _numbers("numbers, control's first, or a number by variant")
    ] = None
    segments: Annotated[tuple[Column, ...], LISTED] = ()
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    looks: Annotated[
        int | tuple[float, ...], _numbers("a number of readings, or a list of shares or numbers of users")
    ] = 1
    planned_users: int | None = Field(default=None, ge=1)
    day: Column = "day"
    exposure: Column | None = None
    trigger: Column | None = None
    srm_p: float = Field(default=0.001, gt=0, lt=0.5)
    metric: Annotated[tuple[Metric, ...], LISTED]

    @model_validator(mode="after")
    def _check(self) -> ExperimentPlan:
        if len(set(self.variants)) < len(self.variants) or len(self.variants) < 2 or "" in self.variants:
            raise ValueError(f"variants == {list(self.variants)}: control and every treatment must have its own name")
        names = [m.name for m in self.metric]
        if len(set(names)) < len(names):
            raise ValueError(f"metric names == {names}, must be unique")
        if not any(m.role == "success" for m in self.metric):
            raise ValueError(f"metric roles == {[m.role for m in self.metric]}: at least one metric must be a success")
        self._check_columns()
        self._check_shares()
        self._check_looks()
        return self

    def _check_columns(self) -> None:
        """No column in two parts: an outcome as segment or covariate would be conditioned on what is measured."""
        own = {"unit": self.unit, "variant": self.variant, "exposure": self.exposure, "trigger": self.trigger}
        parts = [(part, column) for part, column in own.items() if column]
        parts += [(f"metric {m.name}", m.name) for m in self.metric]
        used: dict[str, str] = {}
        for part, column in [*parts, *(("segments", column) for column in self.segments)]:
            if column in used:
                raise ValueError(f"{part} == {column!r}, which is also {used[column]}: every part needs its own column")
            used[column] = part
        for m in self.metric:
            if m.covariate and used.get(m.covariate, "segments") != "segments":
                raise ValueError(
                    f"metric {m.name}: covariate == {m.covariate!r}, which is also {used[m.covariate]}; it must be "
                    "measured before the experiment"
                )

    def _check_shares(self) -> None:
        if isinstance(self.shares, dict) and set(self.shares) != set(self.variants):
            raise ValueError(f"shares of variants == {sorted(self.shares)}, must be of {list(self.variants)}")
        shares = self.variant_shares
        if len(shares) != len(self.variants):
            raise ValueError(f"len(shares) == {len(shares)}, must be {len(self.variants)}: {list(self.variants)}")
        if min(shares) <= 0:
            raise ValueError(f"shares == {list(shares)}, each must be > 0")
        if sum(shares) > 1 + 1e-9:
            raise ValueError(f"shares sum == {sum(shares):g}, must be <= 1")

    def _check_looks(self) -> None:
        if isinstance(self.looks, int):
            if not 1 <= self.looks <= 100:
                raise ValueError(f"looks == {self.looks}, must be between 1 and 100")
            return
        looks = list(self.looks)
        if not looks or looks[0] <= 0 or any(b <= a for a, b in itertools.pairwise(looks)):
            raise ValueError(f"looks == {looks}, must increase from above 0")
        if looks[-1] != 1 and (looks[0] < 1 or self.planned_users not in (None, looks[-1])):
            raise ValueError(
                f"looks == {looks} with planned_users == {self.planned_users}: must be shares that end in 1, "
                "or numbers of users that end in planned_users"
            )

    @property
    def treatments(self) -> tuple[str, ...]:
        """Names of the candidates."""
        return tuple(map(str, self.treatment)) if isinstance(self.treatment, tuple) else (str(self.treatment),)

    @property
    def variants(self) -> tuple[str, ...]:
        """Control and the candidates."""
        return (str(self.control), *self.treatments)

    @property
    def variant_shares(self) -> tuple[float, ...]:
        """Share of all users of each variant, in the order of `variants`; equal parts when not given."""
        if self.shares is None:
            return (1 / len(self.variants),) * len(self.variants)
        return tuple(self.shares[v] for v in self.variants) if isinstance(self.shares, dict) else self.shares

    @property
    def fractions(self) -> tuple[float, ...]:
        """Planned looks as shares of the last one's users."""
        if isinstance(self.looks, int):
            return tuple((k + 1) / self.looks for k in range(self.looks))
        return tuple(look / self.looks[-1] for look in self.looks)

    @property
    def last_users(self) -> int | None:
        """Users at the last planned look; None when the plan does not say."""
        if isinstance(self.looks, tuple) and self.looks[-1] > 1:
            return int(self.looks[-1])
        return self.planned_users

    @classmethod
    def from_toml(cls, path: Path | str) -> ExperimentPlan:
        """Read and validate a PLAN.toml.

        Raises: CampaignError: every problem on its own line, with file and key.
        """
        return validated(cls, read_toml(Path(path)), Path(path))


def plan_of_campaign(campaign: Campaign, control: str, treatments: Sequence[str], **keys: Any) -> ExperimentPlan:
    """The plan that campaign.toml asks for: its outcomes as metrics, its margins, segments and alpha.

    Columns are those of live.live_frame; the covariate of an outcome is the same outcome a window earlier.

    Args:
        campaign: the loaded campaign.
        control: name of the baseline variant.
        treatments: names of the candidates.
        keys: further keys of ExperimentPlan (shares, looks, planned_users, ...).
    """
    fields = ("name", "kind", "role", "margin", "segment_margin")
    values = {
        "control": control,
        "treatment": list(treatments),
        "segments": campaign.segments.columns,
        "alpha": campaign.policy.alpha,
        "srm_p": campaign.monitoring.srm_p,
        "metric": [
            {field: getattr(outcome, field) for field in fields} | {"covariate": outcome.name + BEFORE}
            for outcome in campaign.outcome
        ],
        **keys,
    }
    return validated(ExperimentPlan, values, Path(f"plan of campaign {campaign.name}"))
