"""The training loss: factual error per outcome, and two brakes on differences between arms.

Only the outcome of the arm a user got is known, so only it enters. Rows are weighted by 1 / (n_arms * propensity):
a sparse holdout counts as much as the message. Both brakes weaken as the smaller arm grows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from models.network import UpliftNet

L1_SKIP = 0.30  # times 1/sqrt(n_eff), on |w_arm - w_control| of the linear skip and of octile steps
L1_RULES = 0.45  # the same, of interaction rules
L1_HEAD = 1.00  # the same, of the heads
SPREAD = 0.003  # times 1e4/n_eff (clipped), on the variance of logit_arm - logit_control over a batch


def effective_rows(arm_counts: Sequence[int] | np.ndarray) -> float:
    """1 / sum over arms of (1/n_arms)^2 / n_arm: the rows that a difference between arms rests on.

    >>> round(effective_rows([2800, 37200]))
    10416
    """
    arms = len(arm_counts)
    return 1 / sum((1 / arms) ** 2 / max(count, 1) for count in arm_counts)


def factual_loss(
    logits: Tensor, arm: Tensor, outcome: Tensor, weight: Tensor, scale: Tensor, binary: Sequence[bool]
) -> Tensor:
    """Weighted error of the arm taken, summed over members and outcomes.

    Args:
        logits: (members, n, n_arms, n_outcomes).
        arm: (n,) int64.
        outcome: (n, n_outcomes): 0/1, or standardised.
        weight: (members, n): row weight, 0 where the row's fold is the member's own; mean 1 over its other rows.
        scale: (n_outcomes,): 1 / entropy of a binary outcome's base rate, 1/2 for a standardised one.
        binary: which outcomes are 0/1.
    """
    index = arm.view(1, -1, 1, 1).expand(logits.shape[0], -1, 1, logits.shape[3])
    taken = logits.gather(2, index).squeeze(2)
    total = taken.new_zeros(())
    for j, is_binary in enumerate(binary):
        target = outcome[:, j].expand(taken.shape[0], -1)
        pointwise = F.binary_cross_entropy_with_logits if is_binary else F.mse_loss
        error = pointwise(taken[:, :, j], target, reduction="none")
        total = total + scale[j] * (weight * error).sum()
    return total / outcome.shape[0]


def spread_penalty(logits: Tensor, mean: Tensor | None = None) -> Tensor:
    """Variance over the batch of each arm's difference to control, summed over members, arms and outcomes.

    `mean` is that of the logits over a batch of which these rows are a share: the weighted sum of the shares' answers
    is the variance, and of their gradients its gradient, for deviations from the mean add up to 0.
    """
    difference = logits[:, :, 1:] - logits[:, :, :1]
    if mean is not None:
        return (difference - (mean[:, :, 1:] - mean[:, :, :1])).square().mean(dim=1).sum()
    return difference.var(dim=1, unbiased=False).sum()


def sparsity_penalty(net: UpliftNet, rule_strength: Tensor) -> Tensor:
    """Weighted sum of |weight_arm - weight_control| over heads, skip and rules; times 1/sqrt(n_eff) it joins the loss.

    Args:
        net: the network.
        rule_strength: (n_rules, 1, 1), L1_SKIP for octile steps and L1_RULES for interactions.
    """

    def differences(weight: Tensor) -> Tensor:
        by_arm = weight.view(*weight.shape[:2], net.n_arms, weight.shape[2] // net.n_arms)
        return (by_arm[:, :, 1:] - by_arm[:, :, :1]).abs()

    return (
        L1_HEAD * differences(net.head_weight).sum()
        + L1_SKIP * differences(net.skip_weight).sum()
        + (rule_strength * differences(net.rules_weight * net.rule_mask)).sum()
    )
