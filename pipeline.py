"""The `tactful` command. Read it top to bottom to know the system: each step names its inputs and outputs.

    simulate -> features -> apply + materialize -> train -> promote -> serve, score -> monitor -> retrain

Every step can be run twice (the second run does nothing or the same) and killed at any point (the next run repairs it).

Exit codes:
    0   done; for `monitor`: nothing to do
    1   a bug: an error nobody foresaw, with its traceback
    2   wrong usage of the command line
    3   input or state is not as expected; the message says what to do
    10  `monitor`: retrain
    20  `monitor`: the data is broken; nothing may be trained on it
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import json
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec

# Before any library is imported: telemetry off, one thread per process (nets this small lose on two).
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer
from rich.console import Console

from campaign import ROOT, Campaign, DataError, ModelError, TactfulError, data_dir, load_campaign

if TYPE_CHECKING:
    import pandas as pd

    from models.challenger import Challenger
    from models.forward import NumpyModel
    from monitoring.decide import Decision

# \b keeps the lines of a paragraph as they are
HELP = "Whom does a message help? From raw logs to decisions, and back.\n\n\b\n" + "\n\n\b\n".join(
    (__doc__ or "").split("\n\n")[1:]
)
app = typer.Typer(
    no_args_is_help=True, add_completion=False, help=HELP, rich_markup_mode=None, pretty_exceptions_enable=False
)
experiment_app = typer.Typer(no_args_is_help=True, help="Plan and read a live A/B test.")
app.add_typer(experiment_app, name="experiment")
monitor_app = typer.Typer()
app.add_typer(monitor_app, name="monitor")
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

P = ParamSpec("P")
DATE = ["%Y-%m-%d"]
EndOption = Annotated[
    datetime | None, typer.Option(formats=DATE, help="The day after the last day of logs; default: today.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def main() -> None:
    """Run the command; an error made on purpose, or by the machine, prints its message, never a traceback."""
    code: int | str | None = 0
    warnings.showwarning = _show_warning
    try:
        app()
    except TactfulError as error:
        code = _fail(str(error))
    except OSError as error:
        if error.errno not in MACHINE:
            raise
        code = _fail(f"{error.filename or data_dir()}: {error.strerror}; make room or give access, then run it again")
    except SystemExit as stop:
        code = stop.code
    # DuckDB's bindings print pages about leaked objects when the interpreter ends in the usual way
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


# What a full or locked disk says: not a bug
MACHINE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EISDIR, errno.ENOTDIR}


def _fail(message: str) -> int:
    err.print(f"error: {message}", style="bold red", markup=False, soft_wrap=True)
    return 3


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
    """Ours as a sentence; those of libraries are not the user's to mend (Feast switches them on for everybody)."""
    ours = Path(filename).is_relative_to(ROOT) and not Path(filename).is_relative_to(sys.prefix)
    if ours and category is UserWarning:
        err.print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)


def _alone(command: Callable[P, None]) -> Callable[P, None]:
    """One process at a time in a data folder for this command; the kernel drops the lock of a killed one."""
    name = command.__name__.replace("_", " ")

    @functools.wraps(command)
    def alone(*arguments: P.args, **options: P.kwargs) -> None:
        from feature_repo.atomic import locked

        busy = f"another `tactful {name}` is at work in {data_dir()}; wait until it is done, then run this again"
        with locked(data_dir() / "state" / f"{command.__name__}.lock", busy):
            command(*arguments, **options)

    return alone


# --------------------------------------------------------------------------------------------- how things stand


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Champion, newest features, last verdict, today's decisions."""
    from bentos.decision_log import decided_on
    from monitoring.status import status as ask
    from monitoring.status import status_text

    today = decided_on(_now().date(), data_dir() / "decision_log", data_dir() / "decisions")
    found = ask(data_dir(), today)
    _answer(as_json, found, status_text(found))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """What is in place, what is not, and the command to mend it.

    Installation, campaign.toml, disk, logs, clock, snapshots, online store, model. Exit code 3 when something must be
    mended.
    """
    from monitoring.doctor import as_dicts, examine

    findings = examine(_now())
    _answer(as_json, as_dicts(findings), "\n".join(finding.line() for finding in findings))
    if any(finding.verdict == "mend" for finding in findings):
        raise typer.Exit(3)


# ---------------------------------------------------------------------------------------------- logs and features


@app.command()
def check(as_json: JsonOption = False) -> None:
    """What is missing or wrong in your logs, and what is usable.

    Before anything runs: rows of every table, decisions that would count, outcomes after them. Reads through logs.toml
    where that maps tables, and writes nothing. Exit code 3 when something must be mended.
    """
    from feature_repo.log_map import load_log_map
    from monitoring.doctor import as_dicts
    from monitoring.log_check import check_logs

    with _bar("reading the logs") as progress:
        findings = check_logs(data_dir(), load_campaign(), load_log_map(), _now(), progress)
    _answer(as_json, as_dicts(findings), "\n".join(finding.line() for finding in findings))
    if any(finding.verdict == "mend" for finding in findings):
        raise typer.Exit(3)


@app.command()
@_alone
def simulate(
    users: Annotated[int, typer.Option(min=100, help="Users of the platform.")] = 20_000,
    days: Annotated[int, typer.Option(min=50, help="Days of logs.")] = 90,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 7,
    end: EndOption = None,
) -> None:
    """A stand-in platform writes its raw logs.

    Under data/: logs, the decisions of its random phase, and the truth. Nothing when that world is there already.
    """
    from feature_repo.log_map import load_log_map, log_map_path
    from simulator import simulate as write_world

    campaign = load_campaign()
    if load_log_map().tables:
        raise DataError(
            f"{log_map_path()} maps tables of yours; to simulate beside them set TACTFUL_DATA to another folder and "
            "TACTFUL_LOGS to an empty file"
        )
    with _bar("simulating") as progress:
        world = write_world(
            data_dir(),
            users,
            days,
            seed,
            end=end.date() if end else _world_end(users, days, seed),
            messages=campaign.arm_names[1:],
            holdout_share=campaign.assignment.holdout_share,
            progress=lambda share: progress(round(share * 1000), 1000),
        )
    out.print(f"logs: {world['users']:,} users, {world['start']} to {world['end']}, in {data_dir() / 'logs'}")


@app.command()
def features(
    until: Annotated[
        datetime | None, typer.Option(formats=DATE, help="Last snapshot wanted; default: the newest the logs allow.")
    ] = None,
) -> None:
    """Raw logs -> daily snapshots of every user's features.

    Checks new log files first. Builds under data/features the days that are missing, and those whose logs changed.
    """
    from feature_repo.contracts import ingest
    from feature_repo.snapshots import build_snapshots

    _bring_logs()
    bad = ingest(data_dir() / "logs", data_dir() / "quarantine")
    if bad:
        # a snapshot built now would miss these rows for good
        told = "\n".join(f"  {file.path}: {file.reason}" for file in bad)
        raise DataError(
            f"{len(bad)} log files break their contract and were moved to {data_dir() / 'quarantine'}:\n{told}\n"
            "mend them and put them back under data/logs; `tactful features` once more goes on with what is there then"
        )
    with _bar("building snapshots") as progress:
        days = build_snapshots(
            data_dir() / "logs",
            data_dir() / "features",
            until.date() if until else None,
            engine=os.environ.get("TACTFUL_ENGINE", "duckdb"),
            progress=progress,
            tell=lambda sentence: out.print(sentence, markup=False, soft_wrap=True),
        )
    made = f"{len(days)} days, {days[0]} to {days[-1]}" if days else "nothing missing"
    out.print(f"features: {made}, in {data_dir() / 'features'}")


def materialize() -> None:
    """The newest snapshot -> Feast's registry and online store; nothing when they hold it already."""
    from feature_repo.store import materialize as write_online
    from feature_repo.store import open_store

    newest = _newest_snapshot()
    built = (data_dir() / "features" / f"date={newest}" / "snapshot.parquet").stat().st_mtime_ns
    inputs = {"newest": str(newest), "built": built, "store": os.environ.get("TACTFUL_STORE", "local")}
    with _step("materialize", **inputs, definitions=_digest(ROOT / "feature_repo")) as needed:
        if needed:
            _feast("apply")
            with redirect_stdout(io.StringIO()):  # Feast's own progress is about views, not about us
                write_online(open_store(), newest)
    out.print(f"online store: features of {newest}")


# ---------------------------------------------------------------------------------------------------------- model


@app.command()
@_alone
def train(
    as_of: Annotated[
        datetime | None, typer.Option(formats=DATE, help="Use only what was known on this day; default: all.")
    ] = None,
    keep_network: Annotated[
        bool,
        typer.Option(
            "--keep-network",
            help="Train nothing: choose the policy anew for the champion's network, with today's weights, costs and "
            "guardrails of campaign.toml.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Matured decisions -> network -> policy -> challenger.

    The model goes to the BentoML store, its report to data/reports.
    """
    result = _train(load_campaign(), _as_of(as_of), keep_network)
    _answer(as_json, result.summary(), result.text())


def _train(campaign: Campaign, as_of: datetime, keep_network: bool = False) -> Challenger:
    from models.challenger import train_challenger
    from models.forward import NumpyModel
    from models.registry import model_path

    keep = NumpyModel.load(model_path(_champion())) if keep_network else None
    with _bar("training the network") as progress:
        return train_challenger(
            campaign, as_of, data_dir(), finish=lambda *parts: _finish(campaign, *parts), progress=progress, keep=keep
        )


def _finish(campaign: Campaign, folder: Path, model: NumpyModel, frame: pd.DataFrame) -> None:
    """Into the model folder, before it is packed: what monitoring compares with, what serving asks at every load."""
    from bentos.engine import write_probe
    from feature_repo.atomic import write_json
    from models.spec import columns_of
    from monitoring.inputs import moving_features
    from monitoring.profile import build_profile

    kinds = {feature.name: feature.kind for feature in model.spec.features}
    days = (frame["decided_at"].max() - frame["decided_at"].min()) / timedelta(days=1)
    moving = moving_features(list(kinds), frame["decided_at"].min(), _log_days()[0])
    profile = build_profile(frame, kinds, campaign, weeks=max(days / 7, 1.0), ignore=moving)
    write_json(folder / "reference_profile.json", profile)
    write_probe(folder, model, columns_of(frame.head(16), kinds))


@app.command()
def promote(
    tag: Annotated[str | None, typer.Argument(help="Model tag; default: the newest challenger.")] = None,
    force: Annotated[bool, typer.Option(help="Skip the gate; the history says so.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the challenger the champion, if it is measurably better.

    The gate judges both on the same decisions of users that neither was trained on.
    """
    from monitoring.promotion import changing_champion, promote_challenger

    with changing_champion(data_dir()):
        verdict = promote_challenger(load_campaign(), data_dir(), tag, force=force, now=_now())
    _answer(as_json, verdict.summary(), verdict.text())


@app.command()
def rollback(reason: Annotated[str, typer.Option(help="Why; kept in the history.")] = "by hand") -> None:
    """Make the previous champion the champion again.

    A running service follows within seconds.
    """
    from models.registry import rollback as roll
    from monitoring.promotion import changing_champion

    with changing_champion(data_dir()):
        out.print(f"champion: {roll(reason, at=_now().isoformat()).champion}")


# ------------------------------------------------------------------------------------------------------- decisions


@app.command()
def compact() -> None:
    """The service's decision log -> Parquet, for all that follows.

    From data/decision_log to data/decisions; a service that is running may go on writing.
    """
    from bentos.decision_log import compact as compact_log

    done = compact_log(data_dir() / "decision_log", data_dir() / "decisions")
    for path in done.damaged:
        err.print(f"damaged line in the decision log; its file was moved to {path}", style="yellow", soft_wrap=True)
    out.print(f"decisions: {done.decisions:,} rows of {done.files} log files in {data_dir() / 'decisions'}")


@app.command()
@_alone
def score(
    to_online: Annotated[bool, typer.Option("--push", help="Also write it to Feast's view `eligibility`.")] = False,
) -> None:
    """Every user -> a table of who is eligible.

    Under data/eligibility, through the same engine as the service.
    """
    from bentos.bulk import push, score_all

    with _bar("scoring") as progress:
        path = score_all(data_dir(), load_campaign(), now=_now(), progress=progress)
    out.print(f"eligibility of every user: {path}")
    if to_online:
        with _bar("pushing") as progress:
            count = push(path, _now(), progress)
        out.print(f"online view eligibility: {count:,} users written")


@app.command()
def explain(
    user: Annotated[str, typer.Argument(help="User id.")],
    hour: Annotated[int | None, typer.Option(min=0, max=23, help="Hour of the request, UTC.")] = None,
    surface: Annotated[str | None, typer.Option(help="Surface of the request.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Why a user is eligible or not.

    What the service would answer now, and the features that moved the score.
    """
    from bentos.explain import explain_user

    told = explain_user(user, load_campaign(), hour=hour, surface=surface, now=_now())
    _answer(as_json, told.as_dict(), told.text())


# ------------------------------------------------------------------------------------------------------ monitoring


@monitor_app.callback(invoke_without_command=True)
@_alone
def monitor(
    context: typer.Context,
    week: Annotated[
        datetime | None, typer.Option(formats=DATE, help="Any day of the week; default: the last whole one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """The week's verdict: is it still true, is it still better?

    Data checks, drift, realised uplift, reports under data/monitoring. Exit code 0 nothing to do, 10 retrain, 20 the
    data is broken.
    """
    if context.invoked_subcommand is not None:
        return
    decision = _monitor(week.date() if week else None)
    _answer(as_json, decision.as_dict(), decision.text())
    raise typer.Exit(decision.exit_code)


def _monitor(day: date | None) -> Decision:
    from monitoring.inputs import weekly_inputs
    from monitoring.weekly import run_week

    end = _logs_end()
    last_whole_week = end - timedelta(days=end.isoweekday())
    inputs = weekly_inputs(load_campaign(), data_dir(), day or last_whole_week, _as_of(None))
    return run_week(inputs, data_dir() / "monitoring")


@monitor_app.command("calibrate")
def calibrate_monitor(
    weeks: Annotated[
        list[str] | None, typer.Argument(help="Quiet weeks, as 2026-W07; default: all that asked for nothing.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Thresholds from your own quiet weeks.

    Prints [monitoring] lines for campaign.toml; changes nothing.
    """
    from monitoring.calibrate import calibrate, read_stats

    found = calibrate(read_stats(data_dir() / "monitoring", weeks or ()), load_campaign())
    _answer(as_json, found.summary(), found.text())


@app.command()
@_alone
def retrain(
    force: Annotated[bool, typer.Option(help="Train whatever the last verdict was (never on broken data).")] = False,
    as_json: JsonOption = False,
) -> None:
    """Act on the verdict: train, compare, promote or keep.

    Reads the last decision.json under data/monitoring; does nothing where it asks for nothing. Falls back at once where
    the champion does harm.
    """
    from monitoring.promotion import last_decision
    from monitoring.retraining import retrain as act

    last_decision(data_dir() / "monitoring")  # what is missing first is said first
    campaign = load_campaign()
    with _bar("training the network") as progress:
        done = act(
            campaign,
            data_dir(),
            as_of=_as_of(None),
            now=_now(),
            force=force,
            finish=lambda *parts: _finish(campaign, *parts),
            progress=progress,
        )
    _answer(as_json, done.summary(), done.text())


@app.command()
def rehearse(
    weeks: Annotated[int, typer.Option(min=1, max=104, help="Weeks under the service, after the random phase.")] = 26,
    drift: Annotated[str, typer.Option(help="none, or price|market|fatigue|tracking@WEEK, as in price@8.")] = "none",
    users: Annotated[int, typer.Option(min=1000, help="Users of the platform; a quarter decide each week.")] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw of the simulation.")] = 7,
    reports: Annotated[bool, typer.Option(help="Also draw the reports of every week and training (slow).")] = False,
    experiment: Annotated[
        int | None, typer.Option(metavar="WEEK", help="Run a live experiment from this week on: champion against none.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """The whole loop against the simulated platform.

    Week by week: decide, log, monitor, retrain, promote; true values beside the oracle's. Under data/rehearsals. Exit
    code 20 when it ends on broken data.
    """
    from rehearsal import Script
    from rehearsal import rehearse as live_through

    script = Script.parse(weeks=weeks, drift=drift, users=users, seed=seed, reports=reports, experiment=experiment)
    campaign = load_campaign()
    with _bar(f"rehearsing {weeks} weeks") as progress:
        result = live_through(
            script, campaign, data_dir(), finish=lambda *parts: _finish(campaign, *parts), progress=progress
        )
    _answer(as_json, result.as_dict(), result.text())
    if result.stopped:
        raise typer.Exit(20)


# ---------------------------------------------------------------------------------------------------- live experiments


@experiment_app.command("plan")
def plan_experiment(
    name: Annotated[str, typer.Argument(help="Name of the experiment.")],
    baseline: Annotated[
        Literal["send_none", "send_all", "champion", "rule"], typer.Option(help="Policy of the control variant.")
    ] = "send_none",
    rule: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Whom baseline rule messages; may be repeated.")
    ] = None,
    ladder: Annotated[
        bool, typer.Option(help="Candidates: thresholds from the offline gain curve (baseline champion: always).")
    ] = False,
    threshold: Annotated[
        list[float] | None, typer.Option(help="A candidate: the champion at this threshold, EUR; may be repeated.")
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option(metavar="OUTCOME=EUR", help="Candidates score with this; may be repeated.")
    ] = None,
    effect: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=VALUE", help="Absolute effect to plan for, instead of the offline forecast."),
    ] = None,
    share: Annotated[float, typer.Option(help="Share of users outside holdout and exploration that take part.")] = 0.5,
    ramp: Annotated[float, typer.Option(help="Part of that share enrolled at the start; `change` raises it.")] = 1.0,
    starts: Annotated[datetime | None, typer.Option(formats=DATE, help="First day; default: now.")] = None,
    looks: Annotated[int, typer.Option(min=1, help="Planned readings.")] = 1,
    power: Annotated[float, typer.Option(help="Wanted probability that a candidate this good ships.")] = 0.8,
    as_json: JsonOption = False,
) -> None:
    """Candidates against a baseline: sample size, duration, and the file that the service picks up.

    The candidate is the champion as it is, unless thresholds, weights or a ladder are asked for.
    """
    import pandas as pd

    from monitoring.experiment.design import plan_for_champion
    from monitoring.experiment.file import Variant

    experiment, planned = plan_for_champion(
        load_campaign(),
        data_dir(),
        _champion(),
        name,
        Variant(name=baseline, policy=baseline, share=0.5, rule=_values_by_name(rule)),
        ladder=ladder,
        thresholds=threshold or (),
        weights=_numbers_by_name(weight),
        effects=_numbers_by_name(effect),
        share=share,
        starts_at=starts.replace(tzinfo=UTC) if starts else _now(),
        as_of=_as_of(None),
        looks=looks,
        power=power,
        ramp=ramp,
    )
    if as_json:
        _answer(True, {**planned.to_dict(), "experiment": experiment.model_dump(mode="json")}, "")
        return
    _print_frame(planned.table)
    _print_frame(pd.DataFrame([f.model_dump() for f in experiment.forecast]).drop(columns="model_tag"))
    out.print(
        f"{planned.users:,} users in {len(experiment.variants)} variants, read after {planned.days} days: a candidate "
        f"this good ships with probability {planned.ship_probability:.2f}\n{experiment.text()}\n"
        f"written: {data_dir() / 'experiments' / name}.json",
        soft_wrap=True,
    )


def _values_by_name(pairs: list[str] | None) -> dict[str, tuple[str, ...]] | None:
    """COLUMN=VALUE options: the values of each column."""
    found: dict[str, tuple[str, ...]] = {}
    for pair in pairs or ():
        column, separator, value = pair.partition("=")
        if not separator:
            raise typer.BadParameter(f"{pair!r}, must be COLUMN=VALUE")
        found[column] = (*found.get(column, ()), value)
    return found or None


def _numbers_by_name(pairs: list[str] | None) -> dict[str, float]:
    """NAME=VALUE options."""
    try:
        return {name: float(value) for name, value in (pair.split("=") for pair in pairs or ())}
    except ValueError:
        raise typer.BadParameter(f"{pairs}, must be NAME=NUMBER") from None


@experiment_app.command("change")
def change_experiment(
    name: Annotated[str, typer.Argument(help="Name of the experiment.")],
    ramp: Annotated[float | None, typer.Option(help="Enrol this part of its share; only upwards.")] = None,
    state: Annotated[
        Literal["running", "stopped", "ended"] | None,
        typer.Option(help="stopped: everybody gets the champion at once; running: back; ended: its users are free."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ramp up, stop, go back or end; the service follows within a second. Without an option: how it stands."""
    from monitoring.experiment.file import change_state, read_experiment_file

    folder = data_dir() / "experiments"
    experiment = read_experiment_file(folder / f"{name}.json")
    if ramp is not None or state is not None:
        experiment = change_state(folder, name, _now(), state=state, ramp=ramp)
    _answer(as_json, experiment.model_dump(mode="json"), experiment.text())


@experiment_app.command("read")
def read_experiment(
    name: Annotated[str | None, typer.Argument(help="Name of a planned experiment.")] = None,
    frame: Annotated[Path | None, typer.Option(help="Or a table of any experiment, one row per user.")] = None,
    plan: Annotated[Path | None, typer.Option(help="PLAN.toml of that table.")] = None,
    triggered: Annotated[bool, typer.Option(help="Only users whom the variants treat differently.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ship, hold or roll back: what an experiment says.

    Effects, guardrails and quality checks of a live experiment, or of a plain table.
    """
    from models.table_file import read_table
    from monitoring import ExperimentPlan
    from monitoring import read_experiment as read
    from monitoring.experiment.live import read_live
    from monitoring.experiment.report import markdown

    if triggered and frame is not None:
        raise typer.BadParameter(
            "--triggered is for a planned experiment; a table names its column as trigger in PLAN.toml"
        )
    if frame is not None and plan is not None and name is None:
        asked = ExperimentPlan.from_toml(plan)
        names = (asked.unit, asked.variant, asked.exposure, *asked.segments)
        readout = read(read_table(frame, as_written=[column for column in names if column]), asked)
    elif name is not None and frame is None and plan is None:
        readout = read_live(load_campaign(), data_dir(), name, _as_of(None), triggered=triggered)
    else:
        raise typer.BadParameter("give the name of a planned experiment, or --frame FRAME with --plan PLAN.toml")
    _answer(as_json, readout.to_dict(), markdown(readout, name or frame.stem))  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------- your own tables


@app.command()
def fit(
    frame: Annotated[Path, typer.Argument(help="CSV or Parquet, one row per unit and decision.")],
    spec: Annotated[Path, typer.Option(help="SPEC.toml: features, arm, control, outcomes.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder of the model and its report.json.")],
) -> None:
    """Fit the network to a table of your own.

    No Feast and no logs needed. Prints what every arm did on average.
    """
    from models.table import fit_table

    with _bar("training the network") as progress:
        table = fit_table(frame, spec, out_dir, progress)
    _print_frame(table)
    out.print(f"model and report.json: {out_dir}", soft_wrap=True)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Folder written by `tactful fit`.")],
    frame: Annotated[Path, typer.Argument(help="CSV or Parquet with the model's feature columns.")],
    out_file: Annotated[Path, typer.Option("--out", help="Parquet file to write.")],
    weight: Annotated[
        list[str] | None, typer.Option(help="OUTCOME=WORTH, instead of the fitted one; repeat for more outcomes.")
    ] = None,
) -> None:
    """Outcomes, uplift, score and best arm of every row.

    In the order of the rows, with a model that `tactful fit` wrote.
    """
    from models.table import parse_weights, predict_table

    rows = len(predict_table(model, frame, out_file, parse_weights(weight or [])))
    out.print(f"{rows:,} rows: {out_file}", soft_wrap=True)


@app.command()
def evaluate(
    frame: Annotated[Path, typer.Argument(help="CSV or Parquet of a randomised experiment.")],
    spec: Annotated[Path, typer.Option(help="SPEC.toml: features, arm, control, outcomes.")],
    as_json: JsonOption = False,
) -> None:
    """What each policy would be worth on a table of your own.

    Send none, send all, simpler models and the uplift policy, each row judged by models that never saw its unit,
    with 95% intervals.
    """
    from models.table import evaluate_table, verdict

    with _bar("training the network") as progress:
        table = evaluate_table(frame, spec, progress)
    if as_json:
        _answer(True, json.loads(table.to_json(orient="records")), "")
    else:
        _print_frame(table)
        out.print(verdict(table))


# ------------------------------------------------------------------------------------------------------ everything


@app.command()
@_alone
def run(
    users: Annotated[int, typer.Option(min=100, help="Users of the simulated platform.")] = 20_000,
    days: Annotated[int, typer.Option(min=80, help="Days of logs.")] = 90,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw of the simulation.")] = 7,
    end: EndOption = None,
) -> None:
    """The whole chain on a small simulated world.

    A second run repeats only what is needed.
    """
    started = time.monotonic()
    simulate(users, days, seed, end)
    features()
    materialize()
    last = _logs_end()
    world = {"campaign": load_campaign().hash, "users": users, "days": days, "seed": seed, "end": str(last)}
    # the first model knows what was known a week ago; the weekly monitor and the retraining know all
    with _step("first model", **world) as needed:
        if needed:
            train(datetime.combine(last - timedelta(days=7), datetime.min.time()))
            promote()
            _champion()  # without one nothing below can work, and the next run must try again
    with _step("decisions", **world) as needed:
        if needed:
            _serve_a_day(last)
            compact()
    with _step("score", **world, champion=_champion()) as needed:
        if needed:
            score()
    with _step("monitor", **world) as needed:
        if needed:
            out.print(_monitor(None).text(), markup=False, soft_wrap=True)
    with _step("retrain", **world) as needed:
        if needed:
            retrain(force=True)
    _print_result()
    out.print(f"done in {time.monotonic() - started:.0f} s")


def _serve_a_day(day: date) -> None:
    """`bentoml serve`, and a day's users ask it over HTTP: what a client of the platform would do."""
    import httpx

    from bentos.serve import serving
    from models.splits import hash_unit

    users = _user_ids(day)
    due = [user for user, u in zip(users, hash_unit("a day of four weeks", users), strict=True) if u < 1 / 28]
    reasons: Counter[str] = Counter()
    # a patient client: 500 users a request on a machine that may be busy
    environ = {"TACTFUL_NOW": f"{day}T12:00:00+00:00", "TACTFUL_FEATURE_SECONDS": "20"}
    with serving(data_dir() / "service.log", environ=environ) as url:
        for start in range(0, len(due), 500):
            body = {"user_ids": due[start : start + 500], "context": {"hour": 12, "surface": "home"}}
            answer = httpx.post(f"{url}/decide", json=body, timeout=30).raise_for_status().json()
            reasons.update(decision["reason"] for decision in answer["decisions"])
    counted = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
    out.print(f"service: decided about {len(due):,} users: {counted}", soft_wrap=True)


def _print_result() -> None:
    """The champion's values with intervals, the truth beside them, and where the reports are."""
    import pandas as pd
    from rich.table import Table

    from models.oracle import compare_with_truth

    campaign, tag = load_campaign(), _champion()
    folder = data_dir() / "reports" / tag.replace(":", "-")
    frame = pd.read_parquet(folder / "frame.parquet")
    held_out, truth = frame[frame["split"] == "evaluate"], pd.read_parquet(data_dir() / "truth")
    rows = compare_with_truth(campaign, held_out, pd.read_csv(folder / "values.csv", keep_default_na=False), truth)
    table = Table(title=f"{campaign.name}: EUR per user and window, {(frame['split'] == 'evaluate').sum():,} decisions")
    for column in ("policy", "messaged", "value", "95% interval", "true value"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for row in rows.to_dict("records"):
        interval = f"{row['ci_lower']:.3f} to {row['ci_upper']:.3f}"
        share = "" if pd.isna(row["share"]) else f"{row['share']:.0%}"
        true = "" if pd.isna(row["true_value"]) else f"{row['true_value']:.3f}"
        table.add_row(row["policy"], share, f"{row['value']:.3f}", interval, true)
    out.print(table)
    week = max((data_dir() / "monitoring").glob("*-W*"))
    out.print(f"model report:   {folder / 'report.html'}", soft_wrap=True)
    out.print(f"weekly reports: {week}", soft_wrap=True)


# --------------------------------------------------------------------------------------------------------- helpers


def _now() -> datetime:
    """The clock: $TACTFUL_NOW where set (tests, rehearsal), else now."""
    fixed = os.environ.get("TACTFUL_NOW")
    return datetime.fromisoformat(fixed).astimezone(UTC) if fixed else datetime.now(UTC)


def _logs_end() -> date:
    """The day after the last day of raw logs."""
    return _log_days()[1] + timedelta(days=1)


def _log_days() -> tuple[date, date]:
    """First and last day of raw logs."""
    from feature_repo.contracts import LOGS
    from feature_repo.log_files import arrival, log_files

    _bring_logs()
    days = {arrival(path.parent) for log in LOGS for path in log_files(data_dir() / "logs" / log)}
    if not days:
        raise DataError(
            f"{data_dir() / 'logs'}: no logs; run `tactful simulate`, or put your own there, or map them in logs.toml "
            "(docs/logs.md)"
        )
    return min(days), max(days)


def _bring_logs() -> None:
    """data/logs follows the tables that logs.toml maps; where it maps none, nothing happens."""
    from feature_repo.log_map import load_log_map
    from feature_repo.own_logs import bring_logs

    log_map = load_log_map()
    if not log_map.tables:
        return
    with _bar("reading your logs") as progress:
        count = bring_logs(data_dir(), log_map, load_campaign().arm_names, progress)
    if count:
        err.print(f"logs.toml: {count} new or changed files read", style="dim")


def _world_end(users: int, days: int, seed: int) -> date:
    """Today; or the end of the simulated world that is already there, so that a rerun on another day keeps it."""
    marker = data_dir() / "logs" / "world.json"
    if marker.exists():
        world = json.loads(marker.read_text())
        if (world["users"], world["days"], world["seed"]) == (users, days, seed):
            return date.fromisoformat(world["end"])
    return _now().date()


def _as_of(day: datetime | None) -> datetime:
    end = _logs_end()
    return datetime(end.year, end.month, end.day, tzinfo=UTC) if day is None else day.replace(tzinfo=UTC)


def _newest_snapshot() -> date:
    days = [path.parent.name.removeprefix("date=") for path in (data_dir() / "features").glob("date=*/*.parquet")]
    if not days:
        raise DataError(f"{data_dir() / 'features'}: no snapshots; run `tactful features`")
    return date.fromisoformat(max(days))


def _user_ids(day: date) -> list[str]:
    """Users of a snapshot, in order."""
    import pyarrow.dataset as ds

    column = (
        ds.dataset(data_dir() / "features" / f"date={day}", format="parquet").to_table(columns=["user_id"]).column(0)
    )
    return sorted(column.unique().to_pylist())


def _champion() -> str:
    from models.registry import champion_tag

    tag = champion_tag()
    if tag is None:
        raise ModelError("no champion; run `tactful train`, then `tactful promote` (--force overrules the gate)")
    return tag


@contextmanager
def _step(name: str, **inputs: Any) -> Iterator[bool]:
    """Whether a step must run: not when it was finished with the same inputs. Marked as finished only at its end."""
    from feature_repo.atomic import write_json

    stamp = data_dir() / "state" / f"{name.replace(' ', '-')}.json"
    needed = not stamp.exists() or json.loads(stamp.read_text()) != inputs
    if not needed:
        out.print(f"{name}: up to date")
    yield needed
    if needed:
        write_json(stamp, inputs)


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on the terminal's error stream; silent where that is no terminal."""
    from rich.progress import Progress

    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(title)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _digest(folder: Path) -> str:
    """Hash of the Python and YAML files of a folder."""
    files = sorted([*folder.glob("*.py"), *folder.glob("*.yaml")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _feast(*words: str) -> None:
    profile = os.environ.get("TACTFUL_STORE", "local")
    repo = ["-c", str(ROOT / "feature_repo")]
    if profile != "local":
        repo += ["-f", str(ROOT / "feature_repo" / f"feature_store.{profile}.yaml")]
    command = [str(Path(sys.executable).parent / "feast"), *repo, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TactfulError(f"`feast {' '.join(words)}` failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _print_frame(table: pd.DataFrame) -> None:
    text = table.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="")
    out.print(text, markup=False, soft_wrap=True)


def _answer(as_json: bool, value: Any, text: str) -> None:
    if as_json:
        sys.stdout.write(json.dumps(value, default=str) + "\n")
    else:
        out.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
