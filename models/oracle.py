"""Where the truth is known (the simulator): estimated values beside true ones, and the best any policy could do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from campaign import Campaign
from models.evaluation import evaluate
from models.predictions import mu_hat_of
from models.worth import evaluation_log, evaluation_outcomes, headline


def read_comparison(campaign: Campaign, report: Path, truth: Path) -> tuple[pd.DataFrame, int]:
    """`compare_with_truth` of a report's folder and the folder of the truth; and how many decisions it rests on."""
    frame = pd.read_parquet(report / "frame.parquet")
    held_out = frame[frame["split"] == "evaluate"]
    # a policy may be called "None"; the difference of two equal policies has no interval
    numbers = {column: [""] for column in ("value", "se", "ci_lower", "ci_upper")}
    values = pd.read_csv(report / "values.csv", keep_default_na=False, na_values=numbers)
    return compare_with_truth(campaign, held_out, values, pd.read_parquet(truth)), len(held_out)


def compare_with_truth(
    campaign: Campaign, frame: pd.DataFrame, values: pd.DataFrame, truth: pd.DataFrame
) -> pd.DataFrame:
    """Estimated value of each policy beside its true value, the oracle's included.

    Args:
        campaign: weights and costs.
        frame: rows of the `evaluate` users with outcomes, predictions and `policy_arm`.
        values: `models.evaluate` on the same rows.
        truth: per decision and arm, the true expected value of each measure (user_id, decided_at, arm, measures).

    Returns: columns policy, share (of users messaged), value, ci_lower, ci_upper, true_value; per user and window.
    """
    keys = frame[["user_id", "decided_at"]].reset_index(drop=True)
    arms = []
    for index in range(len(campaign.arm)):
        effects = keys.merge(
            truth[truth["arm"] == index], how="left", on=["user_id", "decided_at"], validate="one_to_one"
        )
        measured = effects[[outcome.measure for outcome in campaign.outcome]].to_numpy()
        arms.append(measured @ np.array(campaign.weights) - campaign.costs[index])
    true = np.column_stack(arms)
    oracle = np.eye(true.shape[1])[true.argmax(axis=1)]
    log = evaluation_log(campaign, frame.reset_index(drop=True))
    mu_hat = mu_hat_of(frame, campaign.arm_names, campaign.outcome_names)
    estimated = evaluate(
        log, {"oracle": oracle}, evaluation_outcomes(campaign), mu_hat=mu_hat, costs=campaign.costs, estimators=("dr",)
    )
    rows = pd.concat([headline(values), headline(estimated).query("policy == 'oracle'")], ignore_index=True)
    taken = {"uplift policy": np.eye(true.shape[1])[frame["policy_arm"]], "oracle": oracle}
    taken["send_none"] = np.eye(true.shape[1])[np.zeros(len(frame), dtype=int)]
    taken["send_all"] = np.tile(np.r_[0, np.full(true.shape[1] - 1, 1 / (true.shape[1] - 1))], (len(frame), 1))
    rows["true_value"] = [float((taken[p] * true).sum(axis=1).mean()) if p in taken else np.nan for p in rows["policy"]]
    rows["share"] = [float(1 - taken[p][:, 0].mean()) if p in taken else np.nan for p in rows["policy"]]
    return rows[["policy", "share", "value", "ci_lower", "ci_upper", "true_value"]]
