"""The uplift network in torch: K members in one batched module, a shared trunk each, one head per arm.

    logit = head(trunk(dense)) + skip(dense) + rules_skip(rules)      for every member, arm and outcome

The linear skip carries main effects, rules carry steps and interactions, the trunk what is left. An arm's head holds
every outcome: logit of a binary one, standardised value of a continuous one.

Shape:
    Input: dense (n, n_dense) float32, rules (n, n_rules) float32 in {0, 1}.
    Output: (members, n, n_arms, n_outcomes).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

TRUNK = (64, 32)


class UpliftNet(nn.Module):
    """Batched ensemble; every weight has shape (members, in, out)."""

    rule_mask: Tensor
    rule_share: Tensor

    def __init__(
        self,
        n_dense: int,
        rule_mask: np.ndarray,
        rule_share: np.ndarray,
        bias: np.ndarray,
        rng: np.random.Generator,
    ) -> None:
        """Start at the average outcome of each arm for everybody.

        Args:
            n_dense: dense inputs.
            rule_mask: (members, n_rules), which member may use which rule.
            rule_share: (n_rules,), share of rows where a rule holds.
            bias: (n_arms, n_outcomes), last layer's value of the average user.
            rng: of the starting weights.
        """
        super().__init__()
        members, n_rules = rule_mask.shape
        self.n_arms, n_out = len(bias), bias.size
        widths = (n_dense, *TRUNK)
        self.trunk_weight = nn.ParameterList(_he(rng, members, a, b) for a, b in pairwise(widths))
        self.trunk_bias = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, width)) for width in TRUNK)
        # heads of all arms start equal: no difference between arms until the data says so
        head = _he(rng, members, TRUNK[-1], bias.shape[1], gain=0.1).data
        self.head_weight = nn.Parameter(head.repeat(1, 1, self.n_arms))
        self.head_bias = nn.Parameter(torch.tensor(bias.ravel(), dtype=torch.float32).repeat(members, 1, 1))
        self.skip_weight = nn.Parameter(torch.zeros(members, n_dense, n_out))
        self.rules_weight = nn.Parameter(torch.zeros(members, n_rules, n_out))
        self.register_buffer("rule_mask", torch.tensor(rule_mask, dtype=torch.float32)[:, :, None])
        self.register_buffer("rule_share", torch.tensor(rule_share, dtype=torch.float32))

    def forward(self, dense: Tensor, rules: Tensor) -> Tensor:
        """Last layer of every member for every arm; (members, n, n_arms, n_outcomes)."""
        members = self.head_bias.shape[0]
        inputs = dense.expand(members, -1, -1)
        hidden = inputs
        for weight, bias in zip(self.trunk_weight, self.trunk_bias, strict=True):
            hidden = torch.relu(torch.baddbmm(bias, hidden, weight))
        out = torch.baddbmm(self.head_bias, hidden, self.head_weight)
        out = torch.baddbmm(out, inputs, self.skip_weight)
        # rules are centred, and doubled so that a rule's sd is near 1 like every dense input's
        out = out + _shared_matmul(2 * (rules - self.rule_share), self.rules_weight * self.rule_mask)
        return out.view(*out.shape[:2], self.n_arms, -1)

    def decayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay applies to: weights, not biases."""
        return [*self.trunk_weight, self.head_weight, self.skip_weight, self.rules_weight]

    def biases(self) -> list[nn.Parameter]:
        """Parameters without weight decay."""
        return [*self.trunk_bias, self.head_bias]

    def tensors(self) -> dict[str, np.ndarray]:
        """Every weight under the name `models.forward` reads, the rules' centring folded into weights and bias."""
        with torch.no_grad():
            rules = 2 * self.rules_weight * self.rule_mask
            bias = self.head_bias - (self.rule_share @ rules).unsqueeze(1)
            named = self._named() | {"rules.weight": rules, "head.bias": bias}
            return {name: tensor.detach().numpy().copy() for name, tensor in named.items()}

    def load(self, tensors: dict[str, np.ndarray]) -> None:
        """Take over weights from `tensors()` (warm start)."""
        with torch.no_grad():
            for name, parameter in self._named().items():
                parameter.copy_(torch.from_numpy(tensors[name]))
            self.head_bias.add_((self.rule_share @ self.rules_weight).unsqueeze(1))
            self.rules_weight.div_(2)

    def _named(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {
            "head.weight": self.head_weight,
            "head.bias": self.head_bias,
            "skip.weight": self.skip_weight,
            "rules.weight": self.rules_weight,
        }
        for i, (weight, bias) in enumerate(zip(self.trunk_weight, self.trunk_bias, strict=True)):
            named |= {f"trunk.{i}.weight": weight, f"trunk.{i}.bias": bias}
        return named


def _he(rng: np.random.Generator, members: int, n_in: int, n_out: int, gain: float = 1.0) -> nn.Parameter:
    scale = gain * np.sqrt(2 / max(n_in, 1))
    return nn.Parameter(torch.tensor(rng.normal(0, scale, (members, n_in, n_out)), dtype=torch.float32))


def _shared_matmul(inputs: Tensor, weight: Tensor) -> Tensor:
    """(n, r) times (members, r, out) -> (members, n, out) as one large product."""
    members, n_in, n_out = weight.shape
    product = inputs @ weight.transpose(0, 1).reshape(n_in, members * n_out)
    return product.view(-1, members, n_out).transpose(0, 1)
