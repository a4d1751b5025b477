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

import io
import json
import os
import time
from contextlib import redirect_stdout
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

# Before any library is imported: telemetry off, one thread per process (nets this small lose on two).
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer

from campaign import Campaign, DataError, ModelError, data_dir, load_campaign, now
from models.registry import read_pointer, required_champion
from models.verdicts import week_folders
from monitoring import logs
from monitoring.experiment.commands import app as experiment_app
from monitoring.terminal import DATE, JsonOption, alone, answer, bar, busy, err, out, print_frame, run_app, step

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
app.add_typer(experiment_app, name="experiment")
monitor_app = typer.Typer()
app.add_typer(monitor_app, name="monitor")

EndOption = Annotated[
    datetime | None, typer.Option(formats=DATE, help="The day after the last day of logs; default: today.")
]


def main() -> None:
    """The console command."""
    run_app(app)


# --------------------------------------------------------------------------------------------- how things stand


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Champion, newest features, last verdict, today's decisions."""
    from bentos.decision_log import decided_on
    from monitoring.status import status as ask
    from monitoring.status import status_text

    today = decided_on(now().date(), data_dir() / "decision_log", data_dir() / "decisions")
    found = ask(data_dir(), today, now())
    answer(as_json, found, status_text(found))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """What is in place, what is not, and the command to mend it.

    Installation, campaign.toml, disk, logs, clock, snapshots, online store, model. Exit code 3 when something must be
    mended.
    """
    from monitoring.doctor import as_dicts, examine

    findings = examine(now())
    answer(as_json, as_dicts(findings), "\n".join(finding.line() for finding in findings))
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

    with bar("reading the logs") as progress:
        findings = check_logs(data_dir(), load_campaign(), load_log_map(), now(), progress)
    answer(as_json, as_dicts(findings), "\n".join(finding.line() for finding in findings))
    if any(finding.verdict == "mend" for finding in findings):
        raise typer.Exit(3)


@app.command()
@alone
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
    with bar("simulating") as progress:
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
    last = date.fromisoformat(world["end"]) - timedelta(days=1)
    out.print(f"logs: {world['users']:,} users, {world['start']} to {last}, in {data_dir() / 'logs'}")


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
    from feature_repo.snapshots import build_snapshots, chosen_engine

    logs.bring()
    bad = ingest(data_dir() / "logs", data_dir() / "quarantine")
    if bad:
        # a snapshot built now would miss these rows for good
        told = "\n".join(f"  {file.path}: {file.reason}" for file in bad)
        raise DataError(
            f"{len(bad)} log files break their contract and were moved to {data_dir() / 'quarantine'}:\n{told}\n"
            "mend them and put them back under data/logs; `tactful features` once more goes on with what is there then"
        )
    with bar("building snapshots") as progress:
        days = build_snapshots(
            data_dir() / "logs",
            data_dir() / "features",
            until.date() if until else None,
            engine=chosen_engine(),
            progress=progress,
            tell=lambda sentence: out.print(sentence, markup=False, soft_wrap=True),
        )
    made = f"{len(days)} days, {days[0]} to {days[-1]}" if days else "nothing missing"
    out.print(f"features: {made}, in {data_dir() / 'features'}")


def materialize() -> None:
    """The newest snapshot -> Feast's registry and online store; nothing when they hold it already."""
    from feature_repo.store import apply, definitions_hash, newest_snapshot, open_store
    from feature_repo.store import materialize as write_online

    newest = newest_snapshot(data_dir() / "features")
    built = (data_dir() / "features" / f"date={newest}" / "snapshot.parquet").stat().st_mtime_ns
    inputs = {"newest": str(newest), "built": built, "store": os.environ.get("TACTFUL_STORE", "local")}
    with step("materialize", **inputs, definitions=definitions_hash()) as needed:
        if needed:
            apply()
            # Feast's own progress is about views, not about us
            with busy("filling the online store"), redirect_stdout(io.StringIO()):
                write_online(open_store(), newest)
    out.print(f"online store: features of {newest}")


# ---------------------------------------------------------------------------------------------------------- model


@app.command()
@alone
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
    processes: Annotated[
        int, typer.Option(min=1, help="Train in so many processes, where decisions do not fit in memory.")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Matured decisions -> network -> policy -> challenger.

    The model goes to the BentoML store, its report to data/reports.
    """
    result = _train(load_campaign(), as_of.replace(tzinfo=UTC) if as_of else logs.end(), keep_network, processes)
    answer(as_json, result.summary(), result.text())


def _train(campaign: Campaign, as_of: datetime, keep_network: bool = False, processes: int = 1) -> Challenger:
    from models.challenger import train_challenger
    from models.forward import NumpyModel
    from models.registry import model_path

    keep = NumpyModel.load(model_path(required_champion())) if keep_network else None
    with bar("training the network") as progress:
        return train_challenger(
            campaign,
            as_of,
            data_dir(),
            finish=lambda *parts: _finish(campaign, *parts),
            progress=progress,
            keep=keep,
            processes=processes,
        )


def _finish(campaign: Campaign, folder: Path, model: NumpyModel, frame: pd.DataFrame) -> None:
    """Into the model folder, before it is packed: what monitoring compares with, what serving asks at every load."""
    from bentos.bundle import write_probe
    from feature_repo.atomic import write_json
    from models.spec import columns_of
    from monitoring.inputs import moving_features
    from monitoring.profile import build_profile

    kinds = {feature.name: feature.kind for feature in model.spec.features}
    days = (frame["decided_at"].max() - frame["decided_at"].min()) / timedelta(days=1)
    moving = moving_features(list(kinds), frame["decided_at"].min(), logs.first_and_last()[0])
    sampled = json.loads((folder / "model.json").read_text(encoding="utf-8"))["data_window"].get("sampled", 1.0)
    profile = build_profile(frame, kinds, campaign, weeks=sampled * max(days / 7, 1.0), ignore=moving)
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

    with busy("judging the challenger"), changing_champion(data_dir()):
        verdict = promote_challenger(load_campaign(), data_dir(), tag, force=force, now=now())
    answer(as_json, verdict.summary(), verdict.text())


@app.command()
def rollback(reason: Annotated[str, typer.Option(help="Why; kept in the history.")] = "by hand") -> None:
    """Make the previous champion the champion again.

    A running service follows within seconds.
    """
    from models.registry import rollback as roll
    from monitoring.promotion import changing_champion

    with changing_champion(data_dir()):
        out.print(f"champion: {roll(reason, at=now().isoformat()).champion}")


# ------------------------------------------------------------------------------------------------------- decisions


@app.command()
def compact() -> None:
    """The service's decision log -> Parquet, for all that follows.

    From data/decision_log to data/decisions; a service that is running may go on writing.
    """
    from bentos.decision_log import compact as compact_log

    with busy("compacting"):
        done = compact_log(data_dir() / "decision_log", data_dir() / "decisions")
    for path in done.damaged:
        told = f"damaged line in the decision log; what stood before it was taken, the file is now {path}"
        err.print(f"{told}: mend the line by hand or leave it", style="yellow", soft_wrap=True)
    out.print(f"decisions: {done.decisions:,} rows of {done.files} log files in {data_dir() / 'decisions'}")


@app.command()
@alone
def score(
    to_online: Annotated[bool, typer.Option("--push", help="Also write it to Feast's view `eligibility`.")] = False,
) -> None:
    """Every user -> a table of who is eligible.

    Under data/eligibility, through the same engine as the service.
    """
    from bentos.bulk import push, score_all

    with bar("scoring") as progress:
        path = score_all(data_dir(), load_campaign(), now=now(), progress=progress)
    out.print(f"eligibility of every user: {path}")
    if to_online:
        with bar("pushing") as progress:
            count = push(path, now(), progress)
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

    with busy("explaining"):
        told = explain_user(user, load_campaign(), hour=hour, surface=surface, now=now())
    answer(as_json, told.as_dict(), told.text())


# ------------------------------------------------------------------------------------------------------ monitoring


@monitor_app.callback(invoke_without_command=True)
@alone
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
    answer(as_json, decision.as_dict(), decision.text())
    raise typer.Exit(decision.exit_code)


def _monitor(day: date | None) -> Decision:
    from monitoring.inputs import weekly_inputs
    from monitoring.weekly import run_week

    end = logs.end()
    last_whole_week = end.date() - timedelta(days=end.isoweekday())
    with busy("judging the week"):
        inputs = weekly_inputs(load_campaign(), data_dir(), day or last_whole_week, end)
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
    answer(as_json, found.summary(), found.text())


@app.command()
@alone
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
    with bar("training the network") as progress:
        done = act(
            campaign,
            data_dir(),
            as_of=logs.end(),
            now=now(),
            force=force,
            finish=lambda *parts: _finish(campaign, *parts),
            progress=progress,
        )
    answer(as_json, done.summary(), done.text())


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
    with bar(f"rehearsing {weeks} weeks") as progress:
        result = live_through(
            script, campaign, data_dir(), finish=lambda *parts: _finish(campaign, *parts), progress=progress
        )
    answer(as_json, result.as_dict(), result.text())
    if result.stopped:
        raise typer.Exit(20)


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

    with bar("training the network") as progress:
        table = fit_table(frame, spec, out_dir, progress)
    print_frame(table)
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

    with busy("predicting"):
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

    with bar("training the network") as progress:
        table = evaluate_table(frame, spec, progress)
    if as_json:
        answer(True, json.loads(table.to_json(orient="records")), "")
    else:
        print_frame(table)
        out.print(verdict(table))


# ------------------------------------------------------------------------------------------------------ everything


@app.command()
@alone
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
    last = logs.end().date()
    world = {"campaign": load_campaign().hash, "users": users, "days": days, "seed": seed, "end": str(last)}
    # the first model knows what was known a week ago; the weekly monitor and the retraining know all
    with step("first model", **world) as needed:
        if needed:
            train(datetime.combine(last - timedelta(days=7), datetime.min.time()))
            promote()
            _require_promotion(users)
    with step("decisions", **world) as needed:
        if needed:
            _decide_for_a_day(last)
            compact()
    with step("score", **world, champion=required_champion()) as needed:
        if needed:
            score()
    with step("monitor", **world) as needed:
        if needed:
            out.print(_monitor(None).text(), markup=False, soft_wrap=True)
    with step("retrain", **world) as needed:
        if needed:
            retrain(force=True)
    _print_result(required_champion())
    out.print(f"done in {time.monotonic() - started:.0f} s")


def _require_promotion(users: int) -> None:
    """Without a champion nothing below can work: show what training found, and stop (ModelError)."""
    pointer = read_pointer()
    if pointer.champion is not None or pointer.challenger is None:
        return
    _print_result(pointer.challenger)
    raise ModelError(
        "the gate promoted no model (the reasons stand above and in the report), so there is none to serve, score or "
        f"monitor. Give it more decisions (`make clean`, then `tactful run --users {max(20_000, 4 * users)}`), or "
        "allow more in campaign.toml; or see the rest of the chain with this model: `tactful promote --force`, then "
        "this command again"
    )


def _decide_for_a_day(day: date) -> None:
    """`bentoml serve`, and a day's users ask it over HTTP."""
    from bentos.serve import ask_over_http
    from feature_repo.store import users_of
    from models.splits import hash_unit

    users = users_of(data_dir() / "features", day)
    due = [user for user, u in zip(users, hash_unit("a day of four weeks", users), strict=True) if u < 1 / 28]
    with busy("serving"):
        reasons = ask_over_http(due, day, data_dir() / "service.log")
    counted = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
    out.print(f"service: decided about {len(due):,} users: {counted}", soft_wrap=True)


def _print_result(tag: str) -> None:
    """A model's values with intervals, the truth beside them, and where the reports are."""
    from rich.table import Table

    from models.oracle import read_comparison

    campaign = load_campaign()
    folder = data_dir() / "reports" / tag.replace(":", "-")
    rows, decisions = read_comparison(campaign, folder, data_dir() / "truth")
    table = Table(title=f"{campaign.name}: {campaign.currency} per user and window, {decisions:,} decisions")
    for column in ("policy", "messaged", "value", "95% interval", "true value"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for row in rows.to_dict("records"):
        interval = f"{row['ci_lower']:.3f} to {row['ci_upper']:.3f}"
        share, true = row["share"], row["true_value"]
        known = ("" if share != share else f"{share:.0%}", "" if true != true else f"{true:.3f}")  # NaN: not known
        table.add_row(row["policy"], known[0], f"{row['value']:.3f}", interval, known[1])
    out.print(table)
    out.print(f"model report:   {folder / 'report.html'}", soft_wrap=True)
    for week in week_folders(data_dir() / "monitoring")[-1:]:
        out.print(f"weekly reports: {week}", soft_wrap=True)


# --------------------------------------------------------------------------------------------------------- helpers


def _world_end(users: int, days: int, seed: int) -> date:
    """Today; or the end of the simulated world that is already there, so that a rerun on another day keeps it."""
    marker = data_dir() / "logs" / "world.json"
    if marker.exists():
        world = json.loads(marker.read_text())
        if (world["users"], world["days"], world["seed"]) == (users, days, seed):
            return date.fromisoformat(world["end"])
    return now().date()


if __name__ == "__main__":
    main()
