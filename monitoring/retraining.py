"""What follows a verdict: fall back where the champion does harm, train a challenger, put it through the gate."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from campaign import Campaign, DataError
from feature_repo.store import feature_schema, open_store
from models.challenger import Challenger, Finish, Progress, train_challenger
from models.forward import NumpyModel
from models.registry import champion_tag, model_path
from models.verdicts import answer, answered
from monitoring.decide import changed_since
from monitoring.inputs import require_features
from monitoring.promotion import Promotion, changing_champion, fall_back, last_decision, promote_challenger
from monitoring.weekly import read_history


@dataclass(frozen=True)
class Retraining:
    """What was done about a week's decision.

    Attributes:
        week: ISO week of the decision; action: what it asked for.
        fallback: tag that replaced a harmful champion at once, None where there was no need.
        promotion: what the gate said of the new challenger; None where none was trained.
        answered: tag of the challenger that has answered this week's call before; None: none has.
    """

    week: str
    action: str
    fallback: str | None = None
    promotion: Promotion | None = None
    answered: str | None = None

    def summary(self) -> dict[str, Any]:
        """What a machine reads."""
        found: dict[str, Any] = {"action": self.action, "trained": self.promotion is not None}
        found |= {"fallback": self.fallback} if self.fallback else {}
        found |= {"answered": self.answered} if self.answered else {}
        return found | (self.promotion.summary() if self.promotion else {})

    def text(self) -> str:
        """What a person reads."""
        lines = [f"fell back to {self.fallback}: the champion does harm"] if self.fallback else []
        nothing = f"week {self.week}: no retraining asked for"
        if self.answered:
            nothing = (
                f"week {self.week}: {self.answered} has answered its call already; --force trains another challenger"
            )
        return "\n".join([*lines, self.promotion.text() if self.promotion else nothing])


def retrain(
    campaign: Campaign,
    data: Path,
    *,
    as_of: datetime,
    now: datetime,
    force: bool = False,
    page: bool = True,
    finish: Finish | None = None,
    progress: Progress | None = None,
) -> Retraining:
    """Act on the newest decision.json, once: every challenger is a test of its own.

    Args:
        campaign: what is trained for.
        data: data folder.
        as_of: nothing that arrived later is used.
        now: written into the champion's history.
        force: train also where the decision does not ask for it, or was answered (never on broken data).
        page: of `train_challenger`.
        finish: of `train_challenger`.
        progress: of `train_challenger`.

    Raises: DataError: the data is broken, or there is no decision. StoreError: another retraining runs.
    """
    with changing_champion(data):
        decision = last_decision(data / "monitoring")
        week, action = str(decision["week"]), str(decision["action"])
        if action == "stop":
            raise DataError(
                f"week {week}: the data is broken ({', '.join(decision['reasons'])}); mend it, then `tactful monitor` "
                f"again ({data / 'monitoring' / week / 'summary.html'} says more)"
            )
        # a champion that came later was not what the week found harmful
        harmful = decision["fallback"] and decision["champion"] == champion_tag()
        fallback = fall_back(campaign, data, f"week {week}", as_of=as_of, now=now) if harmful else None
        before = answered(data / "monitoring").get(week) if action == "retrain" else None
        if (action != "retrain" or before) and not force:
            return Retraining(week, action, fallback, answered=before)
        history = read_history(data / "monitoring", date.fromisoformat(decision["monday"]))
        since = changed_since([*history, decision], campaign)
        challenger = train_against(
            campaign, data, as_of=as_of, since=since, page=page, finish=finish, progress=progress
        )
        promotion = promote_challenger(campaign, data, challenger.tag, force=False, now=now)
        if action == "retrain":
            answer(data / "monitoring", week, challenger.tag)
        return Retraining(week, action, fallback, promotion)


def train_against(
    campaign: Campaign,
    data: Path,
    *,
    as_of: datetime,
    since: datetime | None,
    page: bool,
    finish: Finish | None,
    progress: Progress | None,
) -> Challenger:
    """Train a challenger, from scratch and on from the champion where there is one."""
    tag = champion_tag()
    champion = NumpyModel.load(model_path(tag)) if tag else None
    if tag and champion:  # the gate would say so too, after the training
        require_features(tag, champion, feature_schema(open_store()).types)
    return train_challenger(
        campaign, as_of, data, finish=finish, progress=progress, champion=champion, since=since, page=page
    )
