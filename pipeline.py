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

import json
import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

# Set before any library is imported: telemetry off, one thread per process (small nets; two threads on busy cores lose).
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer
from rich.console import Console

from campaign import ROOT, DataError, TactfulError, data_dir, load_campaign

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, rich_markup_mode=None)
experiment_app = typer.Typer(no_args_is_help=True, help="Plan and read a live A/B test.")
app.add_typer(experiment_app, name="experiment")
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

DateOption = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="A day, YYYY-MM-DD.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def main() -> None:
    """Run the command; an error made on purpose prints its message, never a traceback."""
    try:
        app()
    except TactfulError as error:
        err.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(3)


# ---------------------------------------------------------------------------------------------- logs and features


@app.command()
def simulate(
    users: Annotated[int, typer.Option(min=100, help="Users of the platform.")] = 20_000,
    days: Annotated[int, typer.Option(min=50, help="Days of logs, ending yesterday.")] = 90,
    seed: Annotated[int, typer.Option(min=0)] = 7,
    end: DateOption = None,
) -> None:
    """Write the raw logs of a stand-in platform: data/logs, its random decisions, and the truth."""
    from simulator import simulate as write_world

    campaign = load_campaign()
    world = write_world(
        data_dir(),
        users,
        days,
        seed,
        end=end.date() if end else _world_end(users, days, seed),
        messages=campaign.arm_names[1:],
        holdout_share=campaign.assignment.holdout_share,
    )
    out.print(f"logs: {world['users']:,} users, {world['start']} to {world['end']}, in {data_dir() / 'logs'}")


@app.command()
def features(until: DateOption = None) -> None:
    """Raw logs -> daily snapshots of every user's features (data/features); only the missing days."""
    from feature_repo.contracts import ingest
    from feature_repo.snapshots import build_snapshots

    for bad in ingest(data_dir() / "logs", data_dir() / "quarantine"):
        err.print(f"quarantined: {bad}", style="yellow", markup=False, soft_wrap=True)
    days = build_snapshots(data_dir() / "logs", data_dir() / "features", until.date() if until else None)
    made = f"{len(days)} days, {days[0]} to {days[-1]}" if days else "nothing missing"
    out.print(f"features: {made}, in {data_dir() / 'features'}")


def materialize() -> None:
    """Snapshots -> Feast's online store, with Feast's own commands; nothing when it holds the newest snapshot."""
    newest = max(path.parent.name for path in (data_dir() / "features").glob("date=*/*.parquet"))
    with _step("materialize", newest=newest, definitions=_digest(ROOT / "feature_repo")) as needed:
        if needed:
            _feast("apply")
            _feast("materialize-incremental", f"{newest.removeprefix('date=')}T00:00:01")
    out.print(f"online store: materialized to {newest.removeprefix('date=')}")


# ---------------------------------------------------------------------------------------------------------- model


@app.command()
def train(
    as_of: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Use only what was known on this day; default: all.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Matured decisions -> network -> policy -> report; the model goes to the BentoML store as the challenger."""
    from models.challenger import train_challenger

    result = train_challenger(load_campaign(), _as_of(as_of), data_dir(), progress=_progress)
    _answer(as_json, result.summary(), result.text())


@app.command()
def promote(
    tag: Annotated[str | None, typer.Argument(help="Model tag; default: the newest challenger.")] = None,
    force: Annotated[bool, typer.Option(help="Skip the gate; the history says so.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Put a challenger through the gate and, if it is measurably better, make it the champion."""
    from monitoring.promotion import promote_challenger

    verdict = promote_challenger(load_campaign(), data_dir(), tag, force=force, now=_now())
    _answer(as_json, verdict.summary(), verdict.text())


@app.command()
def rollback(reason: Annotated[str, typer.Option(help="Why; kept in the history.")] = "by hand") -> None:
    """Make the previous champion the champion again; the service follows within seconds."""
    from models.registry import rollback as roll

    out.print(f"champion: {roll(reason, at=_now().isoformat()).champion}")


# ------------------------------------------------------------------------------------------------------- decisions


@app.command()
def compact() -> None:
    """The service's append-only decision log -> Parquet (data/decisions), for training and monitoring."""
    from bentos.decision_log import compact as compact_log

    rows = compact_log(data_dir() / "decision_log", data_dir() / "decisions")
    out.print(f"decisions: {rows:,} new rows in {data_dir() / 'decisions'}")


@app.command()
def score() -> None:
    """Every user -> eligibility table (data/eligibility), through the same engine as the service."""
    from bentos.bulk import score_all

    path = score_all(data_dir(), load_campaign(), now=_now())
    out.print(f"eligibility of every user: {path}")


# ------------------------------------------------------------------------------------------------------ monitoring


@app.command()
def monitor(
    week: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Any day of the week; default: the last whole one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Weekly verdict: data checks, drift, realised uplift, report. Exit 0 none, 10 retrain, 20 data broken."""
    from monitoring.inputs import weekly_inputs
    from monitoring.weekly import run_week

    day = week.date() if week else _logs_end() - timedelta(days=_logs_end().isoweekday())
    decision = run_week(weekly_inputs(load_campaign(), data_dir(), day, _as_of(None)), data_dir() / "monitoring")
    _answer(as_json, decision.as_dict(), decision.text())
    raise typer.Exit(decision.exit_code)


@app.command()
def retrain(
    force: Annotated[bool, typer.Option(help="Train whatever the last verdict was (never on broken data).")] = False,
    as_json: JsonOption = False,
) -> None:
    """Act on the last decision.json: train a challenger, compare it with the champion, promote or keep."""
    from models.challenger import train_challenger
    from monitoring.promotion import last_decision, promote_challenger

    decision = last_decision(data_dir() / "monitoring")
    if decision["action"] == "stop":
        raise DataError(
            f"week {decision['week']}: the data is broken ({', '.join(decision['reasons'])}); mend it first"
        )
    if decision["action"] != "retrain" and not force:
        _answer(
            as_json, {"action": decision["action"], "trained": False}, f"week {decision['week']}: no retraining asked"
        )
        return
    campaign = load_campaign()
    result = train_challenger(campaign, _as_of(None), data_dir(), progress=_progress)
    verdict = promote_challenger(campaign, data_dir(), result.tag, force=False, now=_now())
    _answer(as_json, verdict.summary(), verdict.text())


# ------------------------------------------------------------------------------------------------- your own tables


@app.command()
def fit(
    frame: Annotated[Path, typer.Argument(help="CSV or Parquet, one row per unit and decision.")],
    spec: Annotated[Path, typer.Option(help="SPEC.toml: features, arm, control, outcomes.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder of the model and its report.json.")],
) -> None:
    """Fit the network to a table of your own; no Feast and no logs needed."""
    from models.table import fit_table

    out.print(fit_table(frame, spec, out_dir), markup=False, soft_wrap=True)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Folder written by `tactful fit`.")],
    frame: Annotated[Path, typer.Argument(help="CSV or Parquet with the model's feature columns.")],
    out_file: Annotated[Path, typer.Option("--out", help="Parquet file to write.")],
) -> None:
    """Predict outcomes, uplift, score and best arm of every row, in row order."""
    from models.table import predict_table

    out.print(predict_table(model, frame, out_file), markup=False, soft_wrap=True)


@app.command()
def evaluate(
    frame: Annotated[Path, typer.Argument(help="CSV or Parquet of a randomised experiment.")],
    spec: Annotated[Path, typer.Option(help="SPEC.toml: features, arm, control, outcomes.")],
    as_json: JsonOption = False,
) -> None:
    """Value of send-none, send-all, the response baseline and the uplift policy, cross-fitted, with intervals."""
    from models.table import evaluate_table

    table = evaluate_table(frame, spec)
    _answer(as_json, json.loads(table.to_json(orient="records")), table.to_string(index=False))


# --------------------------------------------------------------------------------------------------------- helpers


def _now() -> datetime:
    """The clock: $TACTFUL_NOW where set (tests, rehearsal), else now."""
    fixed = os.environ.get("TACTFUL_NOW")
    return datetime.fromisoformat(fixed).astimezone(UTC) if fixed else datetime.now(UTC)


def _logs_end() -> date:
    """The day after the last day of raw logs."""
    days = [path.name.removeprefix("date=") for path in (data_dir() / "logs").glob("*/date=*")]
    if not days:
        raise DataError(f"{data_dir() / 'logs'}: no logs; run `tactful simulate`, or put your own there (docs/logs.md)")
    return date.fromisoformat(max(days)) + timedelta(days=1)


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


def _feast(*words: str) -> None:
    command = [str(Path(sys.executable).parent / "feast"), "-c", str(ROOT / "feature_repo"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TactfulError(f"`feast {' '.join(words)}` failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _answer(as_json: bool, value: Any, text: str) -> None:
    if as_json:
        sys.stdout.write(json.dumps(value, default=str) + "\n")
    else:
        out.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
