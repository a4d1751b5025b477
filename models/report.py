"""The training report: is it worth sending, to whom, and how do we know. One self-contained HTML page."""

from __future__ import annotations

import numpy as np
import pandas as pd

from campaign import Campaign
from models.choice import Choice
from models.curves import calibration, gain_curve, heterogeneity, rate
from models.definitions import DEFINITIONS
from models.estimators import effect_scores
from models.figures import POLICY_NAMES, calibration_figure, drivers_figure, gain_figure, segments_figure, values_figure
from models.groups import score_groups
from models.method import (
    candidates_section,
    certainty_section,
    checks_section,
    facts,
    guardrail_points,
    guardrail_section,
    shortfall,
)
from models.page import Section, render_page, table_html
from models.predictions import scores
from models.worth import ARM_OF, RESPONSE_TO


def training_report(
    campaign: Campaign,
    tag: str,
    frame: pd.DataFrame,
    mu_hat: np.ndarray,
    choice: Choice,
    values: pd.DataFrame,
    checks: pd.DataFrame,
    drivers: pd.DataFrame,
    half_width: np.ndarray,
) -> str:
    """HTML of the report.

    Args:
        campaign: names, weights, margins.
        tag: the packed model.
        frame: every row with split, predictions (`score`, `policy_arm`) and outcomes.
        mu_hat: shape (n, n_arms, n_outcomes), of the same rows.
        choice: the chosen threshold and its constraints.
        values: `evaluate` on the `evaluate` users.
        checks: `models.log_checks.check_log` on the frame.
        drivers: `models.explain.drivers` of users of the `evaluate` split.
        half_width: shape (n_messages,), of the 90% interval of a user's score, money.
    """
    rows = (frame["split"] == "evaluate").to_numpy()
    held_out = frame[rows].reset_index(drop=True)
    effect = score_effect(campaign, held_out, mu_hat[rows])
    certified = bool(np.isfinite(choice.threshold))
    share = float(held_out["eligible_by_policy"].mean())
    return render_page(
        title=f"Is the message worth sending? {campaign.name}",
        subtitle=f"{tag}: {len(frame):,} matured decisions, {frame['decided_at'].min():%d %b %Y} to "
        f"{frame['decided_at'].max():%d %b %Y}; values from {len(held_out):,} decisions of users never trained on.",
        verdict=_verdict(choice, share),
        points=_points(campaign, values, choice),
        certified=certified,
        sections=[
            _values_section(values, campaign.currency),
            guardrail_section(campaign, choice),
            _gain_section(held_out, effect, campaign.currency),
            _segment_section(values, held_out, effect, campaign.currency),
            _calibration_section(held_out, effect, campaign.currency),
            certainty_section(
                held_out["score"].to_numpy(),
                _best(campaign, mu_hat[rows]),
                half_width,
                n_train=int((frame["split"] == "train").sum()),
                currency=campaign.currency,
            ),
            _outcomes_section(campaign, values),
            _drivers_section(drivers, campaign.currency),
            candidates_section(choice, campaign.currency),
            checks_section(checks),
        ],
        facts=facts(campaign, tag, frame, choice),
        definitions=DEFINITIONS,
    )


def _verdict(choice: Choice, share: float) -> str:
    if not np.isfinite(choice.threshold):
        return "Do not send it."
    return f"Send it to {share:.0%} of users{', once it is through the gate' if choice.own_cut else ''}."


def score_effect(campaign: Campaign, frame: pd.DataFrame, mu_hat: np.ndarray) -> np.ndarray:
    """Doubly robust score of each row for the effect of its best message arm; shape (n,), money, net of cost."""
    outcome = frame[[f"y_{name}" for name in campaign.outcome_names]].to_numpy(dtype=float)
    arm, propensity = frame["arm"].to_numpy(dtype=np.int64), frame["propensity"].to_numpy(dtype=float)
    effects = (
        effect_scores(outcome, arm, propensity, mu_hat) @ np.array(campaign.weights) - np.array(campaign.costs)[1:]
    )
    return np.asarray(effects[np.arange(len(frame)), _best(campaign, mu_hat)])


def _best(campaign: Campaign, mu_hat: np.ndarray) -> np.ndarray:
    """Index of each row's best message among the messages."""
    return np.asarray(scores(mu_hat, campaign.weights, campaign.costs).argmax(axis=1))


def weighted_rows(values: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Doubly robust rows of the weighted outcome against one baseline ("" for values), everybody."""
    rows = (values["outcome"] == "weighted") & (values["estimator"] == "dr") & (values["segment"] == "")
    return values[rows & (values["baseline"] == baseline)]


def _points(campaign: Campaign, values: pd.DataFrame, choice: Choice) -> list[str]:
    """The answer in a few sentences: gains, guardrails, and why this threshold."""
    told, money = [], campaign.currency
    if np.isfinite(choice.threshold):
        everybody = "everybody" if len(campaign.arm) == 2 else "everybody, to each a random one of the messages"
        for baseline, words in (("send_none", "nobody"), ("send_all", everybody)):
            gain = weighted_rows(values, baseline).set_index("policy").loc["uplift policy"]
            significant = gain["ci_lower"] > 0 or gain["ci_upper"] < 0
            told.append(
                f"Gain over sending it to {words}: {gain['value']:+.3f} {money} per user and window (95%: "
                f"{gain['ci_lower']:+.3f} to {gain['ci_upper']:+.3f}), "
                f"{1000 * gain['value']:+,.0f} {money} per 1,000 users"
                + ("." if significant else ": not significantly different.")
            )
    why = f"Why, on the users of the select split: {choice.reason}."
    return [*told, *guardrail_points(campaign, choice), why, *shortfall(campaign, choice)]


def _values_section(values: pd.DataFrame, currency: str) -> Section:
    own = weighted_rows(values, "")
    table = pd.DataFrame({"policy": [POLICY_NAMES.get(name, name) for name in own["policy"]]})
    for baseline, title in (("", "value"), ("send_none", "against none"), ("send_all", "against all")):
        rows = weighted_rows(values, baseline).set_index("policy").reindex(own["policy"])
        table[f"{title} (95%)"] = with_interval(rows, "{:.3f}" if baseline == "" else "{:+.3f}")
    return Section(
        "What each policy is worth",
        text="What a user brings in a window, less the cost of messages, had everybody been treated by the policy.",
        plots=[values_figure(own, currency)],
        tables=[table_html(table, f"Doubly robust estimates, {currency} per user and window.")],
        note="Differences are paired and so more exact than two values side by side. One whose interval holds 0 is not "
        "significantly different.",
    )


def _gain_section(frame: pd.DataFrame, effect: np.ndarray, currency: str) -> Section:
    score, user = frame["score"].to_numpy(), users(frame)
    autoc, qini = (rate(score, effect, target, cluster=user) for target in ("autoc", "qini"))
    curve, share = gain_curve(score, effect, cluster=user), float(frame["eligible_by_policy"].mean())
    return Section(
        "How many to message",
        text="Users are messaged from the highest score down. Where the curve falls, messages harm.",
        plots=[gain_figure(curve, share, currency)],
        note=f"How well the score ranks users: AUTOC {autoc.value:.3f} (standard error {autoc.se:.3f}), Qini "
        f"{qini.value:.3f} ({qini.se:.3f}), {currency} per user; both are 0 for a score that knows nothing.",
    )


def _calibration_section(frame: pd.DataFrame, effect: np.ndarray, currency: str) -> Section:
    score, user = frame["score"].to_numpy(), users(frame)
    slope = heterogeneity(score, effect, cluster=user)["slope"]
    return Section(
        "Do users gain what was predicted?",
        text="Tenths of users by predicted score, against what the random arms say they really gained.",
        plots=[calibration_figure(calibration(score, effect, cluster=user), currency)],
        note=f"Slope of realised on predicted: {slope.value:.2f} (standard error {slope.se:.2f}); "
        "1 is perfect, 0 knows nothing.",
    )


def _outcomes_section(campaign: Campaign, values: pd.DataFrame) -> Section:
    kinds = {o.name: o.kind for o in campaign.outcome}
    rows = values[
        (values["segment"] == "")
        & (values["policy"] == "uplift policy")
        & (values["baseline"] == "send_none")
        & values["outcome"].isin(list(kinds))
    ]
    parts = []
    for name, own in rows.groupby("outcome", sort=False):
        scale, unit = (100.0, "percentage points") if kinds[str(name)] == "binary" else (1.0, "per user")
        scaled = own.set_index("estimator")[["value", "se", "ci_lower", "ci_upper"]] * scale
        cells = dict(zip(scaled.index, with_interval(scaled, "{:+.3f}"), strict=True))
        line = {"outcome": name, "unit": unit, "doubly robust (95%)": cells["dr"], "snips (95%)": cells["snips"]}
        parts.append(line | {"events": int(own["n_events"].min()), "status": own["status"].iloc[-1]})
    return Section(
        "What changes, outcome by outcome",
        text="The uplift policy against sending none, in each outcome's own unit. The second estimate uses no model: "
        "the two should agree.",
        tables=[table_html(pd.DataFrame(parts))],
    )


def _segment_section(values: pd.DataFrame, frame: pd.DataFrame, effect: np.ndarray, currency: str) -> Section:
    rows = values[
        (values["outcome"] == "weighted")
        & (values["estimator"] == "dr")
        & (values["baseline"] == "send_none")
        & (values["segment"] != "")
        & values["policy"].isin(["send_all", "uplift policy"])
    ]
    alone, under = (rows[rows["policy"] == policy].set_index("segment") for policy in ("send_all", "uplift policy"))
    segments = pd.DataFrame({"segment": alone.index, "the message": helped(alone)})
    segments["everybody messaged (95%)"] = with_interval(alone, "{:+.3f}")
    segments["uplift policy (95%)"] = with_interval(under.reindex(alone.index), "{:+.3f}")
    segments["decisions"] = alone["n_obs"].to_numpy()
    found = score_groups(tree_features(frame), frame["score"].to_numpy(), effect, cluster=users(frame))
    groups = found.table.rename(columns={"measured": "value"})
    table = pd.DataFrame({"users who": groups["rule"], "the message": helped(groups)})
    table["measured (95%)"] = with_interval(groups, "{:+.3f}")
    table["predicted"] = groups["predicted"]
    table["share"] = groups["share"].map("{:.0%}".format)
    return Section(
        "Who is helped, who is harmed",
        text=f"Effect of the message against none, {currency} per user and window, its cost taken off.",
        plots=[segments_figure(rows, currency)] if len(rows) else [],
        tables=[
            table_html(segments, "By segment."),
            table_html(
                table,
                "By groups of the score, read from a tree of depth 3 over the numeric features. It explains "
                f"{found.explained:.0%} of the score; the network decides, not the tree.",
                {"predicted": "{:+.3f}"},
            ),
        ],
    )


def _drivers_section(drivers: pd.DataFrame, currency: str) -> Section:
    """Which features drive the score, with direction."""
    shown = drivers[drivers["feature"].isin(drivers["feature"].drop_duplicates().head(12))]
    ends = shown.sort_values("contribution").groupby("feature", sort=False)
    told = ends["value"].agg(["last", "first"]) + ends["contribution"].agg(["last", "first"]).map(" ({:+.3f})".format)
    size = shown.groupby("feature", sort=False)["size"].first()
    table = pd.DataFrame(
        {"feature": size.index, "moves the score by": size.to_numpy()}
        | {"raised most where": told["last"].reindex(size.index).to_numpy()}
        | {"lowered most where": told["first"].reindex(size.index).to_numpy()}
    )
    users = int(drivers[drivers["feature"] == drivers["feature"].iloc[0]]["users"].sum())
    return Section(
        "Which features drive the score",
        text="By how much each feature moves a user's score away from that of the average training user, and which "
        "way: a feature whose highest third lies to the right raises the score where it is high.",
        plots=[drivers_figure(shown, currency)],
        tables=[
            table_html(
                table,
                f"{currency} per user; mean absolute contribution, over {users} users never trained on.",
                {"moves the score by": "{:.3f}"},
            )
        ],
        note="Contributions add up to the score (integrated gradients against 64 training users; rules by Shapley "
        "values). They say what the network uses, not what would happen if a feature were changed.",
    )


def tree_features(frame: pd.DataFrame) -> pd.DataFrame:
    """The numeric features of a report's frame: not what was decided, predicted or measured."""
    own = {"arm", "propensity", "hour", "score", "policy_arm", "eligible_by_policy"}
    made = ("y_", "uplift_", "mu_", ARM_OF, RESPONSE_TO)
    numbers = map(str, frame.select_dtypes("number"))
    return frame[[name for name in numbers if name not in own and not name.startswith(made)]]


def users(frame: pd.DataFrame) -> np.ndarray:
    """Integer code of each row's user; shape (n,)."""
    return pd.factorize(frame["user_id"])[0]


def with_interval(rows: pd.DataFrame, template: str) -> list[str]:
    """Estimate and interval of each row as text: "0.44 (0.30 to 0.58)"."""
    show, cells = template.format, rows[["value", "ci_lower", "ci_upper"]].to_numpy(dtype=float)
    return [
        "" if np.isnan(v) else show(v) if np.isnan(a) else f"{show(v)} ({show(a)} to {show(b)})" for v, a, b in cells
    ]


def helped(rows: pd.DataFrame) -> list[str]:
    """Whether the interval of each row says "helps" or "harms", or is "unclear"."""
    signs = zip(rows["ci_lower"] > 0, rows["ci_upper"] < 0, strict=True)
    return ["helps" if up else "harms" if down else "unclear" for up, down in signs]
