"""The training report: is it worth sending, to whom, and how do we know. One self-contained HTML page."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import pandas as pd

from campaign import Campaign
from models.choice import Choice
from models.curves import calibration, gain_curve, heterogeneity, rate
from models.estimators import effect_scores
from models.figures import POLICY_NAMES, calibration_figure, drivers_figure, gain_figure, segments_figure, values_figure
from models.page import Section, render_page, table_html


def training_report(
    campaign: Campaign,
    tag: str,
    frame: pd.DataFrame,
    mu_hat: np.ndarray,
    choice: Choice,
    values: pd.DataFrame,
    checks: pd.DataFrame,
    drivers: pd.DataFrame,
) -> str:
    """HTML of the report.

    Args:
        campaign: names, weights, margins.
        tag: the packed model.
        frame: every row with split, predictions (`score`, `policy_arm`) and outcomes.
        mu_hat: shape (n, n_arms, n_outcomes), of the same rows.
        choice: the chosen threshold and its constraints.
        values: `evaluate` on the `evaluate` users.
        checks: `models.decision_log.check_log` on the frame.
        drivers: `models.explain.drivers` of users of the `evaluate` split.
    """
    rows = (frame["split"] == "evaluate").to_numpy()
    held_out = frame[rows].reset_index(drop=True)
    effect = score_effect(campaign, held_out, mu_hat[rows])
    certified = bool(np.isfinite(choice.threshold))
    return render_page(
        title=f"Is the message worth sending? {campaign.name}",
        subtitle=f"{tag}: {len(frame):,} matured decisions, {frame['decided_at'].min():%d %b %Y} to "
        f"{frame['decided_at'].max():%d %b %Y}; values from {len(held_out):,} decisions of users never trained on.",
        verdict=_verdict(values, certified),
        explanation=choice.reason,
        certified=certified,
        sections=[
            _values_section(values),
            _gain_section(held_out, effect),
            _calibration_section(held_out, effect),
            _outcomes_section(values),
            _segment_section(values),
            _drivers_section(drivers),
            _tree_section(held_out, campaign),
            _guardrail_section(choice),
            _checks_section(checks),
        ],
        facts=_facts(campaign, tag, frame),
    )


def score_effect(campaign: Campaign, frame: pd.DataFrame, mu_hat: np.ndarray) -> np.ndarray:
    """Doubly robust score of each row for the effect of its best message arm; shape (n,), EUR per user, net of cost."""
    outcome = frame[[f"y_{name}" for name in campaign.outcome_names]].to_numpy(dtype=float)
    arm, propensity = frame["arm"].to_numpy(dtype=np.int64), frame["propensity"].to_numpy(dtype=float)
    effects = (
        effect_scores(outcome, arm, propensity, mu_hat) @ np.array(campaign.weights) - np.array(campaign.costs)[1:]
    )
    uplift = (mu_hat[:, 1:] - mu_hat[:, :1]) @ np.array(campaign.weights) - np.array(campaign.costs)[1:]
    return np.asarray(effects[np.arange(len(frame)), uplift.argmax(axis=1)])


def weighted_rows(values: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Doubly robust rows of the weighted outcome against one baseline ("" for values), everybody."""
    rows = (values["outcome"] == "weighted") & (values["estimator"] == "dr") & (values["segment"] == "")
    return values[rows & (values["baseline"] == baseline)]


def _verdict(values: pd.DataFrame, certified: bool) -> str:
    if not certified:
        return "Send nothing: no threshold passed its guardrails with a gain."
    gains = [weighted_rows(values, baseline).set_index("policy") for baseline in ("send_none", "send_all")]
    told = []
    for gain in (table.loc["uplift policy"] for table in gains):
        significant = "" if gain["ci_lower"] > 0 or gain["ci_upper"] < 0 else ", not significantly different"
        told.append(f"{gain['value']:+.3f} EUR (95%: {gain['ci_lower']:+.3f} to {gain['ci_upper']:+.3f}{significant})")
    return f"The uplift policy gains per user and window {told[0]} over sending none, {told[1]} over sending all."


def _values_section(values: pd.DataFrame) -> Section:
    own = weighted_rows(values, "")
    table = pd.DataFrame({"policy": [POLICY_NAMES.get(name, name) for name in own["policy"]]})
    for baseline, title in (("", "value"), ("send_none", "against none"), ("send_all", "against all")):
        rows = weighted_rows(values, baseline).set_index("policy").reindex(own["policy"])
        table[title] = rows["value"].to_numpy()
        table[f"{title}, 95%"] = _intervals(rows)
    return Section(
        "What each policy is worth",
        text="Weighted outcome less message cost, had everybody been treated by the policy. Differences are paired: "
        "the same users under both policies.",
        plots=[values_figure(own)],
        tables=[table_html(table, "Doubly robust estimates, EUR per user and window.", _formats(table, "{:.3f}"))],
        note="The response model messages as many users, ranked by their predicted first outcome under the message: "
        "what most teams do. An interval of a difference that contains 0 means: not significantly different.",
    )


def _gain_section(frame: pd.DataFrame, effect: np.ndarray) -> Section:
    score, user = frame["score"].to_numpy(), pd.factorize(frame["user_id"])[0]
    autoc, qini = (rate(score, effect, target, cluster=user) for target in ("autoc", "qini"))
    return Section(
        "How many to message",
        text="Users are messaged from the highest score down. Where the curve falls, messages harm.",
        plots=[gain_figure(gain_curve(score, effect, cluster=user), float(frame["eligible_by_policy"].mean()))],
        note=f"AUTOC {autoc.value:.3f} (standard error {autoc.se:.3f}), Qini {qini.value:.3f} ({qini.se:.3f}), EUR per "
        "user: both are 0 for a score that knows nothing.",
    )


def _calibration_section(frame: pd.DataFrame, effect: np.ndarray) -> Section:
    score, user = frame["score"].to_numpy(), pd.factorize(frame["user_id"])[0]
    slope = heterogeneity(score, effect, cluster=user)["slope"]
    return Section(
        "Do users gain what was predicted?",
        text="Tenths of users by predicted score, against what the random arms say they really gained.",
        plots=[calibration_figure(calibration(score, effect, cluster=user))],
        note=f"Slope of realised on predicted: {slope.value:.2f} (standard error {slope.se:.2f}); "
        "1 is perfect, 0 knows nothing.",
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
        text="Against sending none, in each outcome's own unit per user. Doubly robust (dr) beside self-normalised "
        "inverse propensity (snips), which uses no model: they should agree.",
        tables=[table_html(table, formats=dict.fromkeys(("value", "se", "ci_lower", "ci_upper"), "{:.4f}"))],
    )


def _segment_section(values: pd.DataFrame) -> Section:
    rows = values[
        (values["outcome"] == "weighted")
        & (values["estimator"] == "dr")
        & (values["baseline"] == "send_none")
        & (values["segment"] != "")
        & values["policy"].isin(["send_all", "uplift policy"])
    ]
    return Section("Who is helped, who is harmed: by segment", plots=[segments_figure(rows)] if len(rows) else [])


def _drivers_section(drivers: pd.DataFrame) -> Section:
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
        plots=[drivers_figure(shown)],
        tables=[
            table_html(
                table,
                f"EUR per user; mean absolute contribution, over {users} users never trained on.",
                {"moves the score by": "{:.3f}"},
            )
        ],
        note="Contributions add up to the score (integrated gradients against 64 training users; rules by Shapley "
        "values). They say what the network uses, not what would happen if a feature were changed.",
    )


def _tree_section(frame: pd.DataFrame, campaign: Campaign) -> Section:
    """A small tree of the score: the splits that explain most of it."""
    from sklearn.tree import DecisionTreeRegressor, export_text

    own = {"arm", "propensity", "hour", "score", "policy_arm", "eligible_by_policy"}
    made = ("y_", "uplift_", "mu_", "arm_of_")
    columns = [c for c in map(str, frame.select_dtypes("number")) if c not in own and not c.startswith(made)]
    known = frame[columns].fillna(frame[columns].median()).fillna(0.0)
    tree = DecisionTreeRegressor(max_depth=3, min_samples_leaf=max(20, len(frame) // 20), random_state=0)
    tree.fit(known, frame["score"])
    return Section(
        "The score, sketched",
        text="A tree of depth 3 over the numeric features; leaves are mean predicted scores, EUR per user. It explains "
        f"{tree.score(known, frame['score']):.0%} of the score's variance; the network decides, not the tree.",
        pre=export_text(tree, feature_names=columns, decimals=2),
    )


def _guardrail_section(choice: Choice) -> Section:
    candidates = choice.candidates.drop(columns="score")
    chosen = (
        choice.table[np.isclose(choice.table["threshold"], choice.threshold)] if len(choice.table) else choice.table
    )
    failed = choice.table[choice.table["status"] != "pass"] if len(choice.table) else choice.table
    columns = [c for c in choice.table.columns if c not in ("score", "threshold")]
    return Section(
        "Guardrails, and how the threshold was chosen",
        text="Candidates were tested from the smallest message volume upwards, on the users of the select split. Each "
        "must keep every guardrail above minus its margin, overall and in each segment; the first failure ends the "
        "sequence. Of those certified the score's own cut (0) is taken, unless another is better by more than one "
        "standard error of their paired difference.",
        tables=[
            table_html(
                candidates, "Candidates in the order tested; gain over sending none, EUR.", _formats(candidates)
            ),
            table_html(chosen[columns], "Every constraint of the chosen candidate.", _formats(chosen)),
            table_html(failed[columns], "What ended the sequence, if anything did.", _formats(failed)),
        ],
    )


def _checks_section(checks: pd.DataFrame) -> Section:
    return Section(
        "Was the draw random?",
        text="What must hold if arms were drawn with the logged probabilities; a failed check stops the training.",
        tables=[table_html(checks, formats=_formats(checks))],
    )


def _intervals(rows: pd.DataFrame) -> list[str]:
    ends = zip(rows["ci_lower"], rows["ci_upper"], strict=True)
    return ["" if np.isnan(low) else f"{low:.3f} to {high:.3f}" for low, high in ends]


def _formats(table: pd.DataFrame, template: str = "{:.4g}") -> dict[str, str]:
    return {str(c): template for c in table.columns if pd.api.types.is_float_dtype(table[c])}


def _facts(campaign: Campaign, tag: str, frame: pd.DataFrame) -> dict[str, str]:
    counts = frame.groupby("split")["user_id"].agg(["size", "nunique"])
    return {
        "model": tag,
        "campaign": f"{campaign.name} ({campaign.hash})",
        "weights per unit": ", ".join(f"{o.name} {o.weight:g} EUR" for o in campaign.outcome),
        "message cost": ", ".join(f"{arm.name} {arm.cost:g} EUR" for arm in campaign.arm),
        "users": ", ".join(f"{n}: {r['size']:,} decisions of {r['nunique']:,} users" for n, r in counts.iterrows()),
        "seed": str(campaign.training.seed),
        "interval": "95%, clustered by user",
        "value of a policy": "doubly robust: Dudik, Langford, Li (2011), Doubly Robust Policy Evaluation and Learning",
        "threshold": "fixed-sequence testing: Angelopoulos et al. (2021), Learn then Test",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "feast", "pandas")),
    }
