"""The training report: is it worth sending, to whom, and how do we know. One self-contained HTML page."""

from __future__ import annotations

from html import escape
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from campaign import Campaign
from models.choice import Choice
from models.page import BLUE, GREY, VERMILION, Section, figure_html, render_page, table_html

POLICY_NAMES = {"send_none": "send none", "send_all": "send all"}


def training_report(
    campaign: Campaign, tag: str, frame: pd.DataFrame, mu_hat: np.ndarray, choice: Choice, values: pd.DataFrame
) -> str:
    """HTML of the report.

    Args:
        campaign: names, weights, margins.
        tag: the packed model.
        frame: every row with split, predictions (`score`, `policy_arm`) and outcomes.
        mu_hat: shape (n, n_arms, n_outcomes), of the same rows.
        choice: the chosen threshold and its constraints.
        values: `evaluate` on the `evaluate` users.
    """
    held_out = frame[frame["split"] == "evaluate"]
    certified = bool(np.isfinite(choice.threshold))
    sections = [
        _values_section(values),
        _outcomes_section(values),
        _guardrail_section(choice),
        _segment_section(values),
        _who_section(held_out, campaign),
    ]
    return render_page(
        title=f"Is the message worth sending? {campaign.name}",
        subtitle=f"{tag}: {len(frame):,} matured decisions, {frame['decided_at'].min():%d %b %Y} to "
        f"{frame['decided_at'].max():%d %b %Y}; values from {len(held_out):,} decisions of users the network never saw.",
        verdict=_verdict(values, certified),
        explanation=choice.reason,
        certified=certified,
        sections=sections,
        facts=_facts(campaign, tag, frame),
    )


def weighted_rows(values: pd.DataFrame, baseline: str, segment: str = "") -> pd.DataFrame:
    """Doubly robust rows of the weighted outcome against one baseline ("" for values)."""
    rows = (values["outcome"] == "weighted") & (values["estimator"] == "dr") & (values["segment"] == segment)
    return values[rows & (values["baseline"] == baseline)]


def _verdict(values: pd.DataFrame, certified: bool) -> str:
    if not certified:
        return "Send nothing: no threshold passed its guardrails with a gain."
    gains = [
        weighted_rows(values, baseline).set_index("policy").loc["uplift policy"]
        for baseline in ("send_none", "send_all")
    ]
    parts = [f"{gain['value']:+.3f} EUR ({gain['ci_lower']:+.3f} to {gain['ci_upper']:+.3f})" for gain in gains]
    return (
        f"The uplift policy is worth {parts[0]} per user more than sending none, and {parts[1]} more than sending all."
    )


def _values_section(values: pd.DataFrame) -> Section:
    import plotly.graph_objects as go

    own = weighted_rows(values, "").iloc[::-1]
    names = [POLICY_NAMES.get(name, name) for name in own["policy"]]
    figure = go.Figure(
        go.Scatter(
            x=own["value"],
            y=names,
            mode="markers",
            marker={"color": [BLUE if name == "uplift policy" else GREY for name in own["policy"]], "size": 10},
            error_x=_bars(own),
        )
    )
    figure.update_layout(xaxis_title="EUR per user and window, 95% interval", height=90 + 40 * len(own))
    table = pd.DataFrame({"policy": names[::-1]})
    for baseline, title in (("", "value"), ("send_none", "against none"), ("send_all", "against all")):
        rows = weighted_rows(values, baseline).set_index("policy").reindex(own["policy"].iloc[::-1])
        table[title] = rows["value"].to_numpy()
        table[f"{title}, 95%"] = _intervals(rows)
    return Section(
        "What each policy is worth",
        text="Weighted outcome less message cost, had everybody been treated by the policy. Differences are paired: "
        "the same users under both policies.",
        plots=[figure_html(figure, "values")],
        tables=[table_html(table, "Doubly robust estimates, EUR per user and window.", dict.fromkeys(table, "{:.3f}"))],
        note="The response model messages the same share of users, by predicted probability of the first outcome under "
        "the message: what most teams do. An interval of a difference that contains 0 means: not significantly different.",
    )


def _outcomes_section(values: pd.DataFrame) -> Section:
    rows = values[
        (values["segment"] == "")
        & (values["policy"] == "uplift policy")
        & (values["baseline"] == "send_none")
        & (values["outcome"] != "weighted")
    ]
    table = rows[["outcome", "estimator", "value", "se", "ci_lower", "ci_upper", "n_events", "status"]]
    return Section(
        "What the uplift policy changes, outcome by outcome",
        text="Against sending none, in each outcome's own unit per user; doubly robust (dr) beside self-normalised "
        "inverse propensity (snips), which uses no model: they should agree.",
        tables=[table_html(table, formats=dict.fromkeys(("value", "se", "ci_lower", "ci_upper"), "{:.4f}"))],
    )


def _guardrail_section(choice: Choice) -> Section:
    table = choice.table.copy()
    candidates = choice.candidates.copy()
    return Section(
        "Guardrails, and how the threshold was chosen",
        text="Candidates were tested from the smallest message volume upwards, on users of the select split; each must "
        "keep every guardrail above minus its margin, overall and in each segment. The first failure ends the sequence.",
        tables=[
            table_html(candidates, "Candidates, in the order tested.", _formats(candidates)),
            table_html(table, "Every constraint of every tested candidate.", _formats(table)),
        ],
    )


def _segment_section(values: pd.DataFrame) -> Section:
    import plotly.graph_objects as go

    rows = values[
        (values["outcome"] == "weighted")
        & (values["estimator"] == "dr")
        & (values["baseline"] == "send_none")
        & (values["segment"] != "")
        & values["policy"].isin(["send_all", "uplift policy"])
    ]
    figure = go.Figure()
    for policy, colour in (("send_all", VERMILION), ("uplift policy", BLUE)):
        part = rows[rows["policy"] == policy]
        label = POLICY_NAMES.get(policy, policy)
        figure.add_scatter(
            x=part["value"],
            y=part["segment"],
            mode="markers",
            name=label,
            marker={"color": colour},
            error_x=_bars(part),
        )
    figure.add_vline(x=0, line_color=GREY, line_width=1)
    figure.update_layout(
        xaxis_title="EUR per user against sending none, 95% interval", height=120 + 34 * rows["segment"].nunique()
    )
    return Section("Who is helped, who is harmed: by segment", plots=[figure_html(figure, "segments")])


def _who_section(frame: pd.DataFrame, campaign: Campaign) -> Section:
    """A small tree of the score: the splits that explain most of it."""
    from sklearn.tree import DecisionTreeRegressor, export_text

    columns = [c for c in frame.columns if pd.api.types.is_numeric_dtype(frame[c]) and _is_feature(c, frame, campaign)]
    known = frame[columns].fillna(frame[columns].median()).fillna(0.0)
    tree = DecisionTreeRegressor(max_depth=3, min_samples_leaf=max(20, len(frame) // 20), random_state=0)
    tree.fit(known, frame["score"])
    share = float(tree.score(known, frame["score"]))
    return Section(
        "A readable approximation of the score",
        text=f"A tree of depth 3 over the numeric features; leaves are mean predicted scores, EUR per user. It explains "
        f"{share:.0%} of the score's variance: read it as a sketch, the network decides.",
        pre=export_text(tree, feature_names=columns, decimals=2, show_weights=False),
    )


def _is_feature(name: str, frame: pd.DataFrame, campaign: Campaign) -> bool:
    own = {"arm", "propensity", "hour", "score", "policy_arm", "eligible_by_policy"}
    return name not in own and not name.startswith(("y_", "uplift_"))


def _bars(rows: pd.DataFrame) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": rows["ci_upper"] - rows["value"],
        "arrayminus": rows["value"] - rows["ci_lower"],
    }


def _intervals(rows: pd.DataFrame) -> list[str]:
    return [
        "" if np.isnan(low) else f"{low:.3f} to {high:.3f}"
        for low, high in zip(rows["ci_lower"], rows["ci_upper"], strict=True)
    ]


def _formats(table: pd.DataFrame) -> dict[str, str]:
    return {c: "{:.4g}" for c in table.columns if pd.api.types.is_float_dtype(table[c])}


def _facts(campaign: Campaign, tag: str, frame: pd.DataFrame) -> dict[str, str]:
    weights = ", ".join(f"{o.name} {o.weight:g} EUR" for o in campaign.outcome)
    counts = frame.groupby("split")["user_id"].agg(["size", "nunique"])
    splits = ", ".join(
        f"{name}: {row['size']:,} decisions of {row['nunique']:,} users" for name, row in counts.iterrows()
    )
    return {
        "model": escape(tag),
        "campaign": f"{campaign.name} ({campaign.hash})",
        "weights per unit": weights,
        "message cost": ", ".join(f"{arm.name} {arm.cost:g} EUR" for arm in campaign.arm),
        "users": splits,
        "seed": str(campaign.training.seed),
        "interval": "95%, clustered by user",
        "value of a policy": "doubly robust: Dudik, Langford, Li (2011), Doubly Robust Policy Evaluation and Learning",
        "threshold": "fixed-sequence testing: Angelopoulos et al. (2021), Learn then Test",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "feast", "pandas")),
    }
