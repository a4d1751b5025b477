"""Week after week: features, decisions by the real service code, a week of life, the monitor, and what follows from it.

A finished week leaves `weeks/NN.json`, written last, and the arms it gave. A killed rehearsal is played again with
those arms (the simulator is cheap and gives the same world), and goes on with the first week that is not finished.

Everything lies in one folder of its own (data, feature registry, model store): nothing of the caller's is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from campaign import Campaign, StoreError
from feature_repo.atomic import locked, replacing, write_json, write_text
from feature_repo.log_files import STATE
from models.challenger import Finish
from models.verdicts import forget_answers, week_folders
from rehearsal.script import RANDOM_WEEKS, Result, Script, Week

if TYPE_CHECKING:
    from bentos.bundle import Bundle
    from rehearsal.service import InProcessService
    from simulator import Due, World

Progress = Callable[[int, int], None]


def rehearse(
    script: Script, campaign: Campaign, data: Path, *, finish: Finish, progress: Progress = lambda done, total: None
) -> Result:
    """Play a script to its end; what is finished already is not repeated.

    Args:
        script: what to play.
        campaign: arms, outcomes, thresholds.
        data: the rehearsal goes into data/rehearsals/<name>.
        finish: of `train_challenger`.
        progress: called with (weeks done, weeks in all).

    Raises: StoreError: the same rehearsal is being played, or this process has played another. DataError: an
        experiment would not mature in it.
    """
    from rehearsal.experiment import check, found

    check(script, campaign)
    folder = data / "rehearsals" / script.name
    busy = f"the rehearsal {script.name} is running already; wait until it is done"
    with locked(data / "rehearsals" / f".{script.name}.lock", busy):
        _begin(folder, script, campaign)
        with environment(folder):
            weeks = _play(script, campaign, folder, finish, progress)
        from rehearsal.page import page

        result = Result(script, tuple(weeks), str(folder), found(folder), campaign.currency)

        write_json(folder / "rehearsal.json", result.as_dict())
        write_text(folder / "rehearsal.html", page(result))
    return result


def _begin(folder: Path, script: Script, campaign: Campaign) -> None:
    """An empty folder, or what a killed run of the same script left."""
    stamp, wanted = folder / "script.json", {**asdict(script), "campaign": campaign.hash}
    if folder.exists() and not (stamp.exists() and json.loads(stamp.read_text(encoding="utf-8")) == wanted):
        shutil.rmtree(folder)
    write_json(stamp, wanted)


@contextmanager
def environment(folder: Path) -> Iterator[None]:
    """Data, feature registry and model store of the rehearsal's own, while it plays."""
    own = {
        "TACTFUL_DATA": str(folder / "data"),
        "TACTFUL_FEATURE_REPO": str(folder / "repo"),
        "BENTOML_HOME": str(folder / "bentoml"),
        "TACTFUL_STORE": "local",
    }
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _play(script: Script, campaign: Campaign, folder: Path, finish: Finish, progress: Progress) -> list[Week]:
    done = [_read_week(folder, week) for week in range(1, script.weeks + 1) if _stamp(folder, week).exists()]
    if len(done) == script.weeks:
        return done
    _check_definitions(folder)
    from rehearsal.platform import live_random_phase, live_week, open_world
    from rehearsal.service import InProcessService, apply_features

    world = open_world(script, campaign, folder / "data")
    live_random_phase(world, campaign)
    for week in done:
        live_week(world, np.load(folder / "weeks" / f"{week.week:02d}.npy"))
    _forget_unfinished(folder, script, len(done) + 1)
    if not (folder / "repo" / "data" / "registry.db").exists():
        with replacing(folder / "repo") as aside:
            apply_features(aside)
    stage = Stage(script, campaign, folder / "data", finish)
    if not done:
        stage.train_first(world.date)
    service = InProcessService(campaign, folder / "data")
    for number in range(len(done) + 1, script.weeks + 1):
        progress(number - 1, script.weeks)
        week, arms = stage.play(number, world, service)
        with replacing(folder / "weeks" / f"{number:02d}.npy") as aside, aside.open("wb") as file:
            np.save(file, arms)
        write_json(_stamp(folder, number), {**asdict(week), "pointer": _pointer(folder)})
        done.append(week)
    return done


def _check_definitions(folder: Path) -> None:
    """Feast's definitions name the data folder they were imported for, for as long as the process lives.

    Raises: StoreError: they were imported for another.
    """
    sources = sys.modules.get("feature_repo.sources")
    if sources is not None and not Path(sources.snapshots.path).resolve().is_relative_to(folder.resolve()):
        raise StoreError(
            f"the feature definitions of this process read {sources.snapshots.path}, those of the rehearsal must read "
            f"{folder / 'data'}; play each rehearsal in a process of its own (`tactful rehearse`, or a spawned one)"
        )


@dataclass
class Stage:
    """What stays the same from week to week."""

    script: Script
    campaign: Campaign
    data: Path
    finish: Finish

    def train_first(self, day: date) -> None:
        """The first model, from the random phase; there is nobody to beat, so it serves."""
        from models.challenger import train_challenger
        from models.registry import champion_tag, promote

        self._snapshots([day - timedelta(days=7 * k) for k in range(1, RANDOM_WEEKS + 1)])
        if champion_tag() is None:
            first = train_challenger(
                self.campaign, _midnight(day), self.data, finish=self.finish, page=self.script.reports
            )
            promote(first.tag, "the first model of the rehearsal", at=_midnight(day).isoformat())

    def play(self, number: int, world: World, service: InProcessService) -> tuple[Week, np.ndarray]:
        """Decide on Monday, live through the week, monitor it, and do what the verdict asks for."""
        from monitoring.inputs import weekly_inputs
        from monitoring.retraining import retrain
        from monitoring.weekly import run_week
        from rehearsal.experiment import on_monday, on_sunday
        from rehearsal.platform import live_week

        monday, folder = world.date, self.data.parent
        self._snapshots([monday])
        on_monday(folder, self.script, self.campaign, number)
        bundle, due = service.open_day(monday), world.due()
        arms = service.decide(due)
        week = self._valued(number, due, service, bundle)
        live_week(world, arms)
        self._check_logs()
        on_sunday(folder, self.script, self.campaign, number)
        now = _midnight(world.date)
        inputs = weekly_inputs(self.campaign, self.data, monday, now)
        if not self.script.reports:
            inputs = replace(inputs, reference_sample=None)
        verdict = run_week(inputs, self.data / "monitoring")
        week = replace(week, alarm=verdict.reasons, action=verdict.action)
        if verdict.action != "retrain" and not verdict.fallback:
            return week, arms
        done = retrain(self.campaign, self.data, as_of=now, now=now, finish=self.finish, page=self.script.reports)
        gate = done.promotion.gate if done.promotion else None
        week = replace(week, fallback=done.fallback is not None, gate=gate.verdict if gate else "")
        return replace(week, promoted=bool(done.promotion and done.promotion.promoted)), arms

    def _snapshots(self, days: list[date]) -> None:
        """Check what arrived, and build the snapshots of these days."""
        from feature_repo.snapshots import build_snapshots

        self._check_logs()
        build_snapshots(self.data / "logs", self.data / "features", max(days), only=days)

    def _check_logs(self) -> None:
        """Bad files go into quarantine, as `tactful features` moves them; the week's monitor finds them there."""
        from feature_repo.contracts import ingest

        ingest(self.data / "logs", self.data / "quarantine")

    def _valued(self, number: int, due: Due, service: InProcessService, bundle: Bundle) -> Week:
        """True values of the policies on the users who are due, in the world as it was lived."""
        from bentos.bundle import load_bundle
        from models.registry import model_path, read_pointer
        from rehearsal.platform import true_values
        from rehearsal.service import arms_of

        value, rows = true_values(due, self.campaign), service.rows(due)
        first = read_pointer().history[0]["tag"]
        frozen = load_bundle(first, model_path(first), self.campaign)

        def of(arms: np.ndarray) -> float:
            return float(value[np.arange(len(value)), arms].mean())

        return Week(
            week=number,
            value_policy=of(arms_of(bundle, rows)),
            value_send_all=float(value[:, 1:].mean()),
            value_send_none=float(value[:, 0].mean()),
            value_frozen=of(arms_of(frozen, rows)),
            value_oracle=float(value.max(axis=1).mean()),
            alarm=(),
            action="none",
            promoted=False,
            n=len(value),
            champion=bundle.tag,
        )


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _stamp(folder: Path, week: int) -> Path:
    return folder / "weeks" / f"{week:02d}.json"


def _read_week(folder: Path, week: int) -> Week:
    raw = json.loads(_stamp(folder, week).read_text(encoding="utf-8"))
    raw.pop("pointer")
    return Week(**{**raw, "alarm": tuple(raw["alarm"])})


def _pointer(folder: Path) -> object:
    return json.loads((folder / "data" / "registry" / "champion.json").read_text(encoding="utf-8"))


def _forget_unfinished(folder: Path, script: Script, week: int) -> None:
    """Undo what a killed run did of a week that it did not finish."""
    from rehearsal.experiment import forget_since

    forget_since(folder, week)
    data, monday = folder / "data", script.monday(week)
    shutil.rmtree(data / "decision_log", ignore_errors=True)
    for path in (data / "decisions").glob("date=*"):
        if path.name >= f"date={monday}":
            shutil.rmtree(path)
    for path in week_folders(data / "monitoring"):
        if path.name >= f"{monday:%G-W%V}":
            shutil.rmtree(path)
    forget_answers(data / "monitoring", f"{monday:%G-W%V}")
    # the logs are written again, the same: no snapshot is stale for that
    (data / "features" / STATE).unlink(missing_ok=True)
    if week > 1:
        stamp = json.loads(_stamp(folder, week - 1).read_text(encoding="utf-8"))
        write_json(data / "registry" / "champion.json", stamp["pointer"])
