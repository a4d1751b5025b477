"""campaign.toml: what we want, validated once and frozen; and the errors said when something is not as wanted.

TactfulError
├── CampaignError      campaign.toml or a SPEC.toml: a key is missing, unknown or out of range
├── DataError          a table breaks its contract (also a ValueError): column, rows, example, what to do
├── StoreError         the feature store is missing, half-written or does not answer
└── ModelError         a model folder is missing, corrupt or does not fit the feature service
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import tomllib
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

ROOT = Path(__file__).resolve().parent


class TactfulError(Exception):
    """Base of every error Tactful raises on purpose; the command line prints its message without a traceback."""


class CampaignError(TactfulError, ValueError):
    """A configuration file has a missing, unknown or impossible key."""


class DataError(TactfulError, ValueError):
    """A table breaks its contract; the message names column, rows, an example and what to do."""


class StoreError(TactfulError):
    """The feature store is missing, half-written or does not answer."""


class ModelError(TactfulError):
    """A model folder is missing, corrupt or does not fit the feature service."""


def home() -> Path:
    """Where campaign.toml, logs.toml and data/ lie: in the checkout; after `pip install` of a wheel, where you are."""
    return ROOT if (ROOT / "campaign.toml").exists() else Path.cwd()


def data_dir() -> Path:
    """Folder of everything Tactful writes: $TACTFUL_DATA, or `data` in the checkout."""
    return Path(os.environ.get("TACTFUL_DATA") or home() / "data").resolve()


def now() -> datetime:
    """The clock, UTC; $TACTFUL_NOW (ISO 8601) stands in for it in tests and rehearsals."""
    override = os.environ.get("TACTFUL_NOW")
    if not override:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(override)
    except ValueError:
        raise CampaignError(f"$TACTFUL_NOW == {override!r}, must be ISO 8601, e.g. 2026-11-23T12:00:00+00:00") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
Days = Annotated[int, Field(ge=1, le=365)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _printable(text: str) -> str:
    """Letters and currency signs: it is written into pages and tables as it stands."""
    plain = all(c.isalpha() or c in " ." or unicodedata.category(c) == "Sc" for c in text)
    if not plain or text != text.strip() or not 1 <= len(text) <= 12:
        raise ValueError("must be 1 to 12 letters or currency signs, as EUR, kr or R$")
    return text


Currency = Annotated[str, AfterValidator(_printable)]


class Arm(_Frozen):
    """One message, or control (index 0). `cost` is money per user and window, 0 for control."""

    name: Name
    cost: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class Assignment(_Frozen):
    """Random layers of the service: shares of users, and one salt per draw so that draws are independent."""

    window_days: Days
    holdout_share: float = Field(gt=0, lt=1)
    exploration_share: float = Field(gt=0, lt=1)
    holdout_salt: str = Field(min_length=1)
    exploration_salt: str = Field(min_length=1)
    exploration_arm_salt: str = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Assignment:
        if self.holdout_share + self.exploration_share > 1:
            total = self.holdout_share + self.exploration_share
            raise ValueError(f"holdout_share + exploration_share == {total:g}, must be <= 1")
        if len({self.holdout_salt, self.exploration_salt, self.exploration_arm_salt}) < 3:
            raise ValueError("holdout_salt, exploration_salt and exploration_arm_salt must differ: one salt per draw")
        return self


class OutcomeSpec(_Frozen):
    """One outcome: how it is measured, when it is known, what it is worth.

    The outcome counts events in [decision + first_day, decision + window_days) and is matured `grace_days` later.
    `margin` and `segment_margin` are in the outcome's own unit and belong to guardrails.
    """

    name: Name
    measure: Literal["subscribed", "retained", "listening_hours"]
    kind: Literal["binary", "continuous"]
    window_days: Days
    first_day: int = Field(default=0, ge=0)
    grace_days: int = Field(ge=0, le=60)
    weight: float = Field(allow_inf_nan=False)
    role: Literal["success", "guardrail"]
    margin: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    segment_margin: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check(self) -> OutcomeSpec:
        if self.first_day >= self.window_days:
            raise ValueError(f"first_day == {self.first_day}, must be < window_days == {self.window_days}")
        if (self.role == "guardrail") != (self.margin is not None):
            rule = "a guardrail needs one, a success none"
            raise ValueError(f"margin == {self.margin} with role == {self.role!r}: {rule}")
        return self

    @property
    def matures_after_days(self) -> int:
        """Days from the decision until the outcome is final."""
        return self.window_days + self.grace_days


class PolicyLimits(_Frozen):
    """Budget (share of users messaged) and one-sided error of each guardrail test."""

    max_message_share: float = Field(gt=0, le=1)
    alpha: float = Field(gt=0, lt=0.5)


class Segments(_Frozen):
    """Feature columns whose values split users into segments, for guardrails and reports."""

    columns: tuple[Name, ...]


class Splits(_Frozen):
    """Shares of users that train, select and evaluate; drawn by salted hash of the user id."""

    salt: str = Field(min_length=1)
    train: float = Field(gt=0, lt=1)
    select: float = Field(gt=0, lt=1)
    evaluate: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> Splits:
        total = self.train + self.select + self.evaluate
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + select + evaluate == {total:g}, must be 1")
        return self


class Training(_Frozen):
    """Seed and ensemble size of the network."""

    seed: int = Field(ge=0)
    members: int = Field(ge=2, le=20)


class Monitoring(_Frozen):
    """Thresholds of the weekly verdict; meanings and units stand beside the keys in campaign.toml."""

    pool_weeks: int = Field(ge=1, le=26)
    yearly_false_alarm: float = Field(gt=0, le=10)
    drift_effect: float = Field(gt=0)
    drift_share: Share
    psi_red_line: float = Field(gt=0)
    missing_delta: Share
    row_count_factor: float = Field(gt=1)
    srm_p: float = Field(gt=0, lt=0.5)
    cooldown_weeks: int = Field(ge=0)
    max_feature_age_days: Days


class Campaign(_Frozen):
    """A validated campaign.toml. `currency`: of every weight and cost, as it is to be printed."""

    name: Name
    currency: Currency = "EUR"
    arm: tuple[Arm, ...] = Field(min_length=2)
    assignment: Assignment
    policy: PolicyLimits
    outcome: tuple[OutcomeSpec, ...] = Field(min_length=1)
    segments: Segments
    splits: Splits
    training: Training
    monitoring: Monitoring

    @model_validator(mode="after")
    def _check(self) -> Campaign:
        for kind, names in (("arm", self.arm_names), ("outcome", self.outcome_names)):
            twice = next((k for k, name in enumerate(names) if name in names[:k]), None)
            if twice is not None:
                first = names.index(names[twice])
                raise ValueError(
                    f"{kind}[{twice}].name == {names[twice]!r}, as {kind}[{first}].name is; must be unique"
                )
        if self.arm[0].cost != 0:
            raise ValueError(f"arm[0] ({self.arm[0].name!r}) is control: its cost == {self.arm[0].cost:g}, must be 0")
        if all(o.weight == 0 for o in self.outcome):
            raise ValueError("every outcome has weight == 0: the score would always be 0")
        return self

    @property
    def arm_names(self) -> tuple[str, ...]:
        """Names of the arms; index 0 is control."""
        return tuple(a.name for a in self.arm)

    @property
    def outcome_names(self) -> tuple[str, ...]:
        """Names of the outcomes, in the order of every array's last axis."""
        return tuple(o.name for o in self.outcome)

    @property
    def weights(self) -> tuple[float, ...]:
        """Money per unit of each outcome."""
        return tuple(o.weight for o in self.outcome)

    @property
    def costs(self) -> tuple[float, ...]:
        """Money per user and window of each arm; 0 for control."""
        return tuple(a.cost for a in self.arm)

    @property
    def matures_after_days(self) -> int:
        """Days from a decision until all its outcomes are final."""
        return max(o.matures_after_days for o in self.outcome)

    @property
    def hash(self) -> str:
        """Hash of every value that a decision depends on: 16 hex digits, independent of comments and key order.

        `currency` is left out: it names what is printed, and naming it must not end a running experiment.
        """
        values = self.model_dump(mode="json", exclude={"currency"})
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def load_campaign(path: Path | str | None = None) -> Campaign:
    """Read and validate a campaign file.

    Args:
        path: the TOML file; default $TACTFUL_CAMPAIGN, or campaign.toml beside this file.

    Raises:
        CampaignError: the file is missing or not TOML, or a key is missing, unknown or out of range.
    """
    file = Path(path or os.environ.get("TACTFUL_CAMPAIGN") or home() / "campaign.toml")
    return validated(Campaign, read_toml(file), file)


def read_toml(file: Path) -> dict[str, Any]:
    """Parse a TOML file, or say in one sentence why not (CampaignError)."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CampaignError(f"{file}: no such file; put it there, or name another") from None
    except (IsADirectoryError, NotADirectoryError):
        raise CampaignError(f"{file}: is a folder, or lies in a file; name a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CampaignError(f"{file}: not valid TOML: {error}") from None


T = TypeVar("T", bound=BaseModel)


def validated(model: type[T], values: dict[str, Any], file: Path) -> T:
    """Build `model` from parsed TOML; every problem is one line that names file and key (CampaignError)."""
    try:
        # JSON mode: TOML arrays become tuples although the models are strict about scalars
        return model.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        lines = [f"{file}: {line}" for line in _explained(model, [dict(problem) for problem in error.errors()])]
        raise CampaignError("\n".join(lines)) from None


def _explained(model: type[BaseModel], problems: list[dict[str, Any]]) -> list[str]:
    """A line for each problem; a key that is missing because it is misspelt is one problem, not two."""
    meant = {
        (*p["loc"][:-1], near) for p in problems if p["type"] == "extra_forbidden" if (near := _meant(model, p)[0])
    }
    return [_explain(model, p) for p in problems if not (p["type"] == "missing" and p["loc"] in meant)]


def _meant(model: type[BaseModel], problem: dict[str, Any]) -> tuple[str, list[str]]:
    """The known key that an unknown one is most like, empty where none is; and the known keys."""
    known = _keys_at(model, problem["loc"][:-1])
    return next(iter(difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)), ""), known


def _explain(model: type[BaseModel], problem: dict[str, Any]) -> str:
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    if problem["type"] == "extra_forbidden":
        near, known = _meant(model, problem)
        hint = f"did you mean {near!r}?" if near else f"known keys: {', '.join(sorted(known))}"
        return f"{key}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{key}: missing; add it"
    message, came = problem["msg"].removeprefix("Value error, "), problem["input"]
    where = f"{key}: " if key else ""
    if "==" in message:
        return f"{where}{message}"
    got = "a table" if isinstance(came, dict) else "a list" if isinstance(came, list) else repr(came)
    return f"{where}{message} (got {got})"


def _keys_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Field names of the model found by walking `loc` down from `model`."""
    named = False  # by the file, as the keys of a table of tables are
    for part in loc:
        if isinstance(part, int) or named:
            named = False
            continue
        annotation = model.model_fields[part].annotation
        inner = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
        named = get_origin(annotation) is dict
        model = inner[0] if inner else annotation  # type: ignore[assignment]  # a nested model by construction
    return list(model.model_fields)
