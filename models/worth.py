"""Which policy to run with a network's scores, and what it and those of simpler models are worth.

The threshold comes from `select` users, what is reported from `evaluate` users; the network saw neither.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from campaign import Campaign, ModelError
from models.certification import Guardrail
from models.choice import SHARES, Choice, choose_policy
from models.decision_log import Outcome
from models.evaluation import evaluate
from models.policy import Policy, Threshold, response_baseline, top_share
from models.predictions import policy_arm, scores
from models.spec import FitSpec

if TYPE_CHECKING:
    from models.baselines import Baseline

SEND_NOTHING = sys.float_info.max  # threshold that no score exceeds; JSON has no infinity
RESPONSE = "response model"
ARM_OF, RESPONSE_TO = "arm_of_", "response_to_"  # columns of `rival_columns`


def fit_rivals(frame: pd.DataFrame, spec: FitSpec) -> dict[str, Baseline]:
    """The simpler models by name, trained on the same rows."""
    from models.baselines import fit_lightgbm_s, fit_linear_t, fit_response

    train = frame[frame["split"] == "train"]
    return {
        RESPONSE: fit_response(train, spec),
        "linear T-learner": fit_linear_t(train, spec),
        "LightGBM S-learner": fit_lightgbm_s(train, spec),
    }


def choose_and_evaluate(
    campaign: Campaign,
    frame: pd.DataFrame,
    mu_hat: np.ndarray,
    rival: Mapping[str, np.ndarray],
    *,
    own_cut: bool = False,
) -> tuple[Choice, pd.DataFrame]:
    """Threshold from `select`, values from `evaluate`; the network's policy and those of the simpler models.

    `own_cut`: the score's own cut (within the budget) is taken, whatever the guardrails say of it.
    """
    log, outcomes = evaluation_log(campaign, frame), evaluation_outcomes(campaign)
    score = scores(mu_hat, campaign.weights, campaign.costs)
    options: dict[str, Any] = {"segments": list(campaign.segments.columns), "costs": campaign.costs}
    choice = choose_policy(
        log,
        {"uplift": score},
        outcomes,
        guardrails=[
            Guardrail(o.name, float(o.margin or 0), o.segment_margin) for o in campaign.outcome if o.role == "guardrail"
        ],
        max_message_share=campaign.policy.max_message_share,
        shares=(campaign.policy.max_message_share,) if own_cut else SHARES,
        mu_hat=mu_hat,
        alpha=campaign.policy.alpha,
        **options,
    )
    choice = _own_cut(choice, score) if own_cut else choice
    rows = np.flatnonzero(log["split"].to_numpy() == "evaluate")
    policies: dict[str, Policy] = {"uplift policy": policy_of(choice, score[rows])}
    share = float((score[rows].max(axis=1) > choice.threshold).mean())
    for name, other in rival.items():
        if name == RESPONSE:
            policies[name] = response_baseline(other[rows], 0, share)
        else:
            policies[name] = Threshold(scores(other[rows], campaign.weights, campaign.costs), 0.0)
    values = evaluate(log.iloc[rows].reset_index(drop=True), policies, outcomes, mu_hat=mu_hat[rows], **options)
    return choice, values


def _own_cut(choice: Choice, score: np.ndarray) -> Choice:
    """The first candidate, which is the score's own cut or the budget's: named before any outcome was looked at."""
    if choice.candidates.empty:
        return choice
    cut = float(choice.candidates["threshold"].iloc[0])
    return replace(
        choice,
        policy=Threshold(score, cut),
        score="uplift",
        threshold=cut,
        own_cut=True,
        reason=f"score 'uplift' > {cut:g}: the score's own cut within the budget, since decisions after the change are "
        "few; the gate tests the guardrails",
        candidates=choice.candidates.assign(chosen=np.arange(len(choice.candidates)) == 0),
    )


def rival_columns(campaign: Campaign, rival: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """What the gate needs of the simpler models on every row.

    `arm_of_<model>`: the arm that an uplift model would send. `response_to_<arm>`: what the response model predicts of
    the first outcome, by which it ranks users; how many it sends to is the challenger's to say.
    """
    arms = {
        f"{ARM_OF}{name}": policy_arm(scores(mu_hat, campaign.weights, campaign.costs), 0.0)
        for name, mu_hat in rival.items()
        if name != RESPONSE
    }
    ranks = {f"{RESPONSE_TO}{arm}": rival[RESPONSE][:, a, 0] for a, arm in enumerate(campaign.arm_names) if a}
    return pd.DataFrame(arms | ranks)


def rival_policies(frame: pd.DataFrame, campaign: Campaign, challenger: np.ndarray) -> dict[str, np.ndarray]:
    """Arms of the simpler models from `rival_columns`, by name; shape (n,) each.

    The response model sends to as many of these rows as the challenger does, as `response_baseline`: those with the
    highest predicted response. Rows tied at the cut are drawn.

    Args:
        frame: the rows on which policies are compared.
        campaign: its arms.
        challenger: arm of each row, shape (n,).

    Raises: ModelError: the rows were written before the response model was among them.
    """
    arms = {name: frame[name].to_numpy() for name in map(str, frame) if name.startswith(ARM_OF)}
    columns = [f"{RESPONSE_TO}{arm}" for arm in campaign.arm_names[1:]]
    absent = [name for name in columns if name not in frame]
    if absent:
        raise ModelError(f"the rows to judge on have no {absent}: trained by an earlier version; run `tactful train`")
    response = frame[columns].to_numpy()
    share = float((challenger > 0).sum()) / max(len(frame), 1)
    sent = top_share(response.max(axis=1), share) > np.random.default_rng(0).random(len(frame))
    arms[RESPONSE] = np.where(sent, response.argmax(axis=1) + 1, 0)
    return {name.removeprefix(ARM_OF): arm for name, arm in arms.items()}


def policy_of(choice: Choice, score: np.ndarray | Sequence[str]) -> Threshold:
    """The chosen policy on other rows; an infinite threshold sends nothing."""
    return Threshold(score, min(choice.threshold, SEND_NOTHING))


def evaluation_log(campaign: Campaign, frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with outcome columns named as the outcomes are."""
    return frame.rename(columns={f"y_{name}": name for name in campaign.outcome_names})


def evaluation_outcomes(campaign: Campaign) -> list[Outcome]:
    """The campaign's outcomes as the evaluation takes them."""
    return [Outcome(o.name, o.kind, o.weight) for o in campaign.outcome]


def headline(values: pd.DataFrame) -> pd.DataFrame:
    """Weighted value of each policy, everybody, doubly robust: the rows of the first table."""
    rows = (values["outcome"] == "weighted") & (values["segment"] == "") & (values["estimator"] == "dr")
    return values[rows & (values["baseline"] == "")]
