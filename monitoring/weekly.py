"""One week of monitoring: frames in, verdict out, and everything that shows why under `<out_dir>/<week>/`.

    decision.json   what to do, and the figures behind it (docs/monitoring.md); earlier ones are the history
    stats.json      every statistic; `calibrate` reads it
    summary.html    one page for the Monday meeting; summary.md: the same for a chat or a mail
    report.html     Evidently's report, drawn from a sample; kept in <out_dir>/workspace as well

The folder of a week appears whole or not at all, and running a week again replaces it by the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from campaign import Campaign
from feature_repo.atomic import replacing, write_json, write_text
from models.verdicts import answered, read_verdicts
from monitoring.checks import check_schema, check_week
from monitoring.decide import Decision, Statistics, decide, week_name
from monitoring.drift import Drift, measure_drift
from monitoring.profile import Profile
from monitoring.realised import Realised, measure_realised
from monitoring.summary import summary_html, summary_markdown
from monitoring.week_sums import WeekSums, sum_week

TYPICAL_WEEKS = 4  # the rows expected are the median of this many weeks


@dataclass(frozen=True)
class WeekInputs:
    """All that a week's verdict rests on.

    Attributes:
        week: any day of the week.
        as_of: what had arrived by then was used; also the time written into decision.json.
        campaign: thresholds.
        champion: model tag.
        features: name -> "numeric" | "string", the champion's inputs.
        week_frame: decisions of the week: the decision log's columns, features, and the columns of
            `models.predictions.prediction_columns` by the champion.
        matured_frame: decisions of the last `pool_weeks` matured weeks that the champion was not trained on: the same
            columns, `mu_<control>_<outcome>` and `y_<outcome>`.
        profile: the champion's reference profile.
        reference_sample: at most 20,000 reference rows, for Evidently; None: no Evidently report.
        quarantined: raw log files that arrived in the week and were refused, each with why.
        counted: sums of the whole week, where `week_frame` is a sample of it.
    """

    week: date
    as_of: datetime
    campaign: Campaign
    champion: str
    features: Mapping[str, str]
    week_frame: pd.DataFrame
    matured_frame: pd.DataFrame
    profile: Profile
    reference_sample: pd.DataFrame | None = None
    quarantined: Sequence[str] = ()
    counted: WeekSums | None = None

    @cached_property
    def sums(self) -> WeekSums:
        """Sums over every decision of the week."""
        return self.counted or sum_week(self.week_frame, self.features, self.profile, self.campaign)

    @property
    def monday(self) -> date:
        """First day of the week."""
        return self.week - timedelta(days=self.week.weekday())


def run_week(inputs: WeekInputs, out_dir: Path) -> Decision:
    """Measure, decide, and write the folder of the week; the same inputs give the same decision.json."""
    history = read_history(out_dir, inputs.monday)
    statistics = measure_week(inputs, history)
    verdict = decide(inputs.monday, inputs.champion, statistics, history, inputs.campaign)
    decision = replace(verdict, record=record(inputs, statistics))
    with replacing(out_dir / week_name(inputs.monday)) as folder:
        folder.mkdir()
        if inputs.reference_sample is not None:
            _write_report(inputs, inputs.reference_sample, decision, statistics, folder, out_dir / "workspace")
        write_json(folder / "stats.json", as_json(asdict(statistics)))
        write_text(folder / "summary.html", summary_html(decision, statistics, history, inputs.campaign))
        write_text(folder / "summary.md", summary_markdown(decision, statistics, inputs.campaign))
        write_json(folder / "decision.json", decision.as_dict())
    return decision


def _write_report(
    inputs: WeekInputs,
    reference: pd.DataFrame,
    decision: Decision,
    statistics: Statistics,
    folder: Path,
    workspace: Path,
) -> None:
    from monitoring import evidently_report  # importing Evidently takes seconds

    if decision.record["report"]:
        run = evidently_report.build_report(
            decision, statistics, inputs.week_frame, reference, inputs.profile, inputs.campaign
        )
        evidently_report.save_html(run, folder / "report.html")
    else:
        run = evidently_report.stopped_report(decision)
    evidently_report.update_workspace(workspace, run, inputs.monday, inputs.campaign)


def measure_week(inputs: WeekInputs, history: Sequence[Mapping[str, Any]]) -> Statistics:
    """Every statistic of the week; nothing beyond the checks where one of them fails."""
    sums, campaign = inputs.sums, inputs.campaign
    checks = check_schema(sums)
    if sums.counts is None or not all(check.ok for check in checks):
        return Statistics(tuple(checks))
    expected = expected_rows(history, inputs.profile)
    checks += check_week(sums, inputs.profile, campaign, expected_rows=expected, quarantined=inputs.quarantined)
    if not all(check.ok for check in checks):
        return Statistics(tuple(checks))
    drift = measure_drift(inputs.profile, sums.counts, campaign.monitoring)
    realised = measure_realised(inputs.matured_frame, campaign, inputs.profile.get("lines", ()))
    return Statistics(tuple(checks), drift, realised)


def expected_rows(history: Sequence[Mapping[str, Any]], profile: Profile) -> float:
    """Rows of a usual week: the median of the last whole weeks, or the reference's where there are none."""
    whole = [h for h in sorted(history, key=lambda h: str(h["monday"])) if h["action"] != "stop"]
    return float(median(h["data"]["n"] for h in whole[-TYPICAL_WEEKS:])) if whole else float(profile["rows_per_week"])


def record(inputs: WeekInputs, statistics: Statistics) -> dict[str, Any]:
    """What decision.json holds beside the verdict: the figures it rests on, in short."""
    found: dict[str, Any] = as_json(
        {
            "decided_at": inputs.as_of.isoformat(),
            "campaign_hash": inputs.campaign.hash,
            "reference": {"n": inputs.profile["n"]},
            "data": {"n": inputs.sums.n, "ok": not statistics.failed}
            | {"failed": [asdict(check) for check in statistics.failed]},
            "drift": _drift_record(statistics.drift),
            "realised": _realised_record(statistics.realised),
            # broken data has no report: Evidently would die on it, or draw it without a word
            "report": inputs.reference_sample is not None and not statistics.failed,
        }
    )
    return found


def _drift_record(drift: Drift | None) -> dict[str, Any] | None:
    if drift is None:
        return None
    keep = ("name", "role", "effect", "shift", "psi", "missing", "warn", "red", "new")
    columns = [{name: getattr(c, name) for name in keep} for c in drift.columns if c.warn or c.new]
    return {
        "share_warn": drift.share_warn,
        "columns": columns,
        "share_eligible": drift.share_eligible,
        "share_eligible_reference": drift.share_reference,
    }


def _realised_record(realised: Realised | None) -> dict[str, Any] | None:
    if realised is None:
        return None
    return {
        "n": realised.n,
        "weeks": realised.weeks,
        "gain": realised.gain,
        "gain_se": realised.gain_se,
        "tests": [asdict(test) for test in realised.tests],
    }


def as_json(value: Any) -> Any:
    """Dataclasses' dicts, tuples and numpy numbers as plain JSON values, NaN as null."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and value != value else value


def read_history(out_dir: Path, before: date) -> list[dict[str, Any]]:
    """Contents of every decision.json of weeks before a Monday, oldest first; `retrained`: the week was answered.

    Raises: DataError: a file is not a decision of schema 1.
    """
    earlier, done = [v for v in read_verdicts(out_dir) if date.fromisoformat(v["monday"]) < before], answered(out_dir)
    return [verdict | {"retrained": verdict["week"] in done} for verdict in earlier]
