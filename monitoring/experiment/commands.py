"""`tactful experiment`: plan a live A/B test, change it while it runs, read it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from campaign import data_dir, load_campaign, now
from models.registry import required_champion
from monitoring import logs
from monitoring.terminal import DATE, JsonOption, answer, busy, out, print_frame

if TYPE_CHECKING:
    from monitoring.experiment.file import Experiment
    from monitoring.experiment.power import PlannedExperiment

app = typer.Typer(no_args_is_help=True, help="Plan and read a live A/B test.")


@app.command("plan")
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
        list[float] | None, typer.Option(help="A candidate: the champion at this threshold; may be repeated.")
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option(metavar="OUTCOME=WORTH", help="Candidates score with this; may be repeated.")
    ] = None,
    effect: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=VALUE",
            help="Absolute effect to plan for, instead of the offline forecasts of all metrics; may be repeated. "
            "Metrics that are not named count as unchanged.",
        ),
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
    from monitoring.experiment.design import plan_for_champion
    from monitoring.experiment.file import Variant

    end = logs.end()
    with busy("planning"):
        experiment, planned = plan_for_champion(
            load_campaign(),
            data_dir(),
            required_champion(),
            name,
            Variant(name=baseline, policy=baseline, share=0.5, rule=_values_by_name(rule)),
            ladder=ladder,
            thresholds=threshold or (),
            weights=_numbers_by_name(weight),
            effects=_numbers_by_name(effect),
            share=share,
            starts_at=starts.replace(tzinfo=UTC) if starts else now(),
            as_of=end,
            looks=looks,
            power=power,
            ramp=ramp,
        )
    if as_json:
        answer(True, {**planned.to_dict(), "experiment": experiment.model_dump(mode="json")}, "")
        return
    _print_plan(experiment, planned, effect or [])


def _print_plan(experiment: Experiment, planned: PlannedExperiment, effect: list[str]) -> None:
    """Tests, forecasts and what to expect; `effect`: METRIC=VALUE as given by hand."""
    import pandas as pd

    print_frame(planned.table)
    print_frame(pd.DataFrame([f.model_dump() for f in experiment.forecast]).drop(columns="model_tag"))
    unchanged = [metric.name for metric in planned.plan.metric if metric.name not in _numbers_by_name(effect)]
    if effect and unchanged:
        out.print(
            f"planned for {', '.join(effect)}, and no change of {', '.join(unchanged)} (not the forecast above); name "
            "them with --effect too if you expect one",
            soft_wrap=True,
        )
    out.print(
        f"{planned.users:,} users in {len(experiment.variants)} variants, read after {planned.days} days: a candidate "
        f"this good ships with probability {planned.ship_probability:.2f}\n{experiment.text()}\n"
        f"written: {data_dir() / 'experiments' / experiment.name}.json",
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


@app.command("change")
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
        experiment = change_state(folder, name, now(), state=state, ramp=ramp)
    answer(as_json, experiment.model_dump(mode="json"), experiment.text())


@app.command("read")
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
        end = logs.end()
        with busy("reading"):
            readout = read_live(load_campaign(), data_dir(), name, end, triggered=triggered)
    else:
        raise typer.BadParameter("give the name of a planned experiment, or --frame FRAME with --plan PLAN.toml")
    answer(as_json, readout.to_dict(), markdown(readout, name or frame.stem))  # type: ignore[union-attr]
