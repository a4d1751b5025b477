"""The sections of the training report that say how we know: guardrails, choice of the threshold, checks, facts."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import pandas as pd

from campaign import Campaign
from models.choice import Choice
from models.page import Section, table_html

# docs/benchmarks.md has the worlds one by one
COVERAGE = (
    ".862 of users after training on 5,000 decisions, and of .873 after 40,000 (means over three kinds of worlds, in "
    "single worlds between .61 and 1.00; measured on 2026-11-25, see docs/benchmarks.md)"
)

OWN_CUT = (
    "The world has changed, so only decisions since the change count here: too few to certify thresholds in every "
    "segment. The score's own cut (0), or the budget's, was taken, named before any outcome was looked at; no "
    "guardrail chose it, and the gate tests the guardrails of this one policy. Below: how it did on the users of the "
    "select split."
)


def deciding_constraints(choice: Choice) -> pd.DataFrame:
    """Constraints of the chosen candidate; where nothing was certified, of the one that ended the sequence."""
    table = choice.table
    if not len(table):
        return table
    cut = choice.threshold if np.isfinite(choice.threshold) else table["threshold"].iloc[-1]
    return table[np.isclose(table["threshold"], cut, rtol=0, atol=1e-12)]


def guardrail_points(campaign: Campaign, choice: Choice) -> list[str]:
    """One sentence per guardrail: its change overall, what was allowed, and how its segments fared."""
    told = []
    for outcome, rows in deciding_constraints(choice).groupby("constraint", sort=False):
        overall, segments = rows[rows["segment"] == ""].iloc[0], rows[rows["segment"] != ""]
        show = _units(campaign, str(outcome))
        counts = segments["status"].value_counts()
        where = ", ".join(f"{n} {status}" for status, n in counts.items())
        told.append(
            f"Guardrail {outcome}: {show(overall['estimate'])}, at worst {show(overall['lower_bound'])} (95%), allowed "
            f"{show(-overall['margin'])}: {overall['status']}{where and f'; by segment: {where}'}."
        )
    return told


def shortfall(campaign: Campaign, choice: Choice) -> list[str]:
    """Where nothing was certified: each constraint that stood against the smallest policy, and what would help."""
    if np.isfinite(choice.threshold):
        return []
    told = []
    for row in deciding_constraints(choice).query("status != 'pass'").to_dict("records"):
        show, where = _units(campaign, row["constraint"]), row["segment"] or "everybody"
        worst, allowed = show(row["lower_bound"]), show(-row["margin"])
        change = f"changes by {show(row['estimate'])}, at worst {worst} (95%), allowed {allowed}"
        said = f"{row['constraint']} of {where} {change}"
        key = "a wider segment_margin, fewer and larger segments" if row["segment"] else "a wider margin"
        more = (row["min_detectable_margin"] / row["margin"]) ** 2
        if row["status"] == "fail":
            told.append(f"Harm is not excluded: {said}. See whom in the report; change the message, or {key}.")
        elif more > 1:
            told.append(
                f"Too few decisions to tell: {said}. A message that harms nobody would pass with about {more:.1f} "
                f"times as many (more users, or more weeks); or set {key} in campaign.toml."
            )
        else:
            told.append(f"Too few events to tell: {said}, but fewer than 10 events show it. Wait for more decisions.")
    return told


def guardrail_section(campaign: Campaign, choice: Choice) -> Section:
    """Every constraint of the candidate that was chosen, or of the one that failed."""
    rows, lines = deciding_constraints(choice), []
    for row in rows.to_dict("records"):
        show = _units(campaign, row["constraint"])
        lines.append(
            {
                "guardrail": row["constraint"],
                "who": row["segment"] or "everybody",
                "verdict": row["status"],
                "change": show(row["estimate"]),
                "at worst": show(row["lower_bound"]),
                "allowed": show(-row["margin"]),
                "detectable loss": show(-row["min_detectable_margin"]),
                "effective users": f"{row['n_eff']:,.0f}",
            }
        )
    certified = bool(np.isfinite(choice.threshold))
    which = "the chosen policy" if certified else "the smallest policy, which ended the test"
    decides = (
        " They did not choose the threshold: the gate tests them overall, on more decisions, before this model serves."
    )
    return Section(
        "Does it harm what must not be harmed?",
        text=f"Guardrails of {which}, against sending none: measured on users who took no part in training or in the "
        "values above. A guardrail passes where even the worst end of its interval (95%, one-sided) is allowed."
        + (decides if choice.own_cut else ""),
        tables=[table_html(pd.DataFrame(lines))] if lines else [],
        note="" if lines else "No guardrail is set in campaign.toml.",
    )


def _units(campaign: Campaign, name: str) -> Callable[[float], str]:
    """How a change of an outcome is written."""
    binary = next(o.kind for o in campaign.outcome if o.name == name) == "binary"
    return (lambda x: f"{100 * x:+.2f} points") if binary else (lambda x: f"{x:+.4f} per user")


def certainty_section(score: np.ndarray, best: np.ndarray, half: np.ndarray, n_train: int, currency: str) -> Section:
    """How sure the score of a single user is.

    Args:
        score: (n,), of each user's best message, money.
        best: (n,), index of that message among the messages.
        half: (n_messages,), half the width of the 90% interval.
        n_train: decisions of the training users.
        currency: as it is to be printed.
    """
    limit = half[best]
    sure = (
        ("gains: the interval lies above 0", score > limit),
        ("loses: it lies below 0", score < -limit),
        ("unclear: it holds 0", np.abs(score) <= limit),
    )
    table = pd.DataFrame({"the user": [name for name, _ in sure], "share": [f"{own.mean():.0%}" for _, own in sure]})
    return Section(
        "How sure is one user's score?",
        text=f"The 90% interval of a user's score is {2 * limit.mean():.3f} {currency} wide on average (standard "
        f"deviation of the score: {score.std():.3f}). It says how far one user may be off, and decides nothing: a "
        "score above the threshold is the best guess either way, and the values above hold for all users together.",
        tables=[table_html(table)],
        note=f"In simulated experiments with known effects such intervals held the true score of {COVERAGE}. Here "
        f"{n_train:,} decisions were at hand to train on. The width is the same for every user of a message: the "
        "spread of the members, and a guess at what all of them miss.",
    )


def candidates_section(choice: Choice, currency: str) -> Section:
    """The sequence of candidates, folded: only a statistician reads it."""
    c = choice.candidates
    table = pd.DataFrame(
        {
            "score above": c["threshold"].map("{:.3f}".format),
            "messages": c["share"].map("{:.0%}".format),
            "gain over none (se)": _with_error(c["gain"], c["se"]),
            "result": c["status"],
            "against the own cut (se)": _with_error(c["difference"], c["difference_se"]),
            "": np.where(c["chosen"], "chosen", ""),
        }
    )
    failed = choice.table[choice.table["status"] != "pass"]
    ended = [f"{r['constraint']}, {r['segment'] or 'everybody'}: {r['status']}" for r in failed.to_dict("records")]
    stop = f"The sequence ended at {'; '.join(ended)}." if ended else "No candidate failed a guardrail."
    return Section(
        "How the threshold was chosen",
        text=OWN_CUT
        if choice.own_cut
        else "Candidates were tested from the smallest message volume upwards, on the users of the select split. Each "
        "must keep every guardrail, overall and in each segment; the first failure ends the sequence. Of those "
        "certified the score's own cut (0) is taken, unless another is better by more than one standard error of their "
        f"paired difference. {stop}",
        folded=[("All candidates", table_html(table, f"{currency} per user and window, users of the select split."))],
    )


def _with_error(value: pd.Series, se: pd.Series) -> list[str]:
    return ["" if np.isnan(v) else f"{v:+.3f} ({e:.3f})" for v, e in zip(value, se, strict=True)]


def checks_section(checks: pd.DataFrame) -> Section:
    """What `check_log` found."""
    bad = int((checks["status"] != "ok").sum())
    table = checks[["check", "status", "detail"]].assign(
        p=checks["p_value"].map(lambda p: "" if np.isnan(p) else f"{p:.3f}")
    )
    return Section(
        "Was the draw random?",
        text=f"{len(checks)} checks of what must hold if arms were drawn with the probabilities used here; "
        + (f"{bad} ask for attention. " if bad else "all hold. ")
        + "A failed check stops the training.",
        tables=[table_html(table)],
    )


def facts(campaign: Campaign, tag: str, frame: pd.DataFrame, choice: Choice) -> dict[str, str]:
    """Where the numbers come from: model, campaign, users, splits, seeds, versions."""
    counts = frame.groupby("split")["user_id"].agg(["size", "nunique"])
    layers = frame["layer"].value_counts() if "layer" in frame else pd.Series(dtype=int)
    splits, assignment = campaign.splits, campaign.assignment
    return {
        "model": tag,
        "campaign": f"{campaign.name} ({campaign.hash})",
        "weights per unit": ", ".join(f"{o.name} {o.weight:g} {campaign.currency}" for o in campaign.outcome),
        "message cost": ", ".join(f"{arm.name} {arm.cost:g} {campaign.currency}" for arm in campaign.arm),
        "users": ", ".join(f"{n}: {r['size']:,} decisions of {r['nunique']:,} users" for n, r in counts.iterrows()),
        "splits": f"by hash of the user, salt {splits.salt!r}: train {splits.train:.0%} (the network), select "
        f"{splits.select:.0%} (the threshold), evaluate {splits.evaluate:.0%} (the values)",
        "layers": ", ".join(f"{name} {rows:,}" for name, rows in layers.items())
        + f"; in service {assignment.holdout_share:.0%} of users held out, {assignment.exploration_share:.0%} explored",
        "seed": f"{campaign.training.seed} (network, tree 0, band 0)",
        "guardrail error": "by the gate" if choice.own_cut else f"at most {campaign.policy.alpha:.0%}, one-sided",
        "budget": f"at most {campaign.policy.max_message_share:.0%} of users",
        "versions": ", ".join(
            f"{name} {version(name)}" for name in ("torch", "numpy", "scipy", "pandas", "scikit-learn", "feast")
        ),
    }
