"""Why this score: how much each feature moved it away from that of the average training user, in money. Numpy only.

A user is compared with BACKGROUND training users that are kept with the model, spread evenly over the score. From each
of them a straight line leads to the user, in the network's inputs; along it

    score(user) - score(other) = sum over inputs of (input of the user - input of the other) * mean slope of the score

Inputs of the skip and the rules move the logit by exactly weight times difference, so only the slope of logit ->
outcome is integrated there; for the trunk its own slopes are. A rule belongs to several features: its change is split
by Shapley values, which are exact for a conjunction. Contributions are averaged over the background: they add up to
the score less the background's average score. STEPS is doubled until they do.

Source: Sundararajan, Taly, Yan (2017), arXiv:1703.01365, eq. 1; with many baselines: Erion et al. (2021), Expected
    Gradients, eq. 4; a conjunction against one baseline: Lundberg et al. (2020), interventional TreeSHAP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import beta, expit

from campaign import ModelError
from models.encode import Tensors, allowed_codes, code_counts, codes, dense_owner
from models.forward import NumpyModel, shrink, to_units, unpack
from models.predictions import scores

BACKGROUND = 64
SAMPLE = 4096  # training rows that the background is taken from
STEPS, MAX_STEPS = 8, 1024
TOLERANCE = 0.005  # of the score, and of its distance from the baseline
ROUNDING = 1e-6  # of score and baseline: where a message's scores hardly differ, float32 sums do not either


@dataclass(frozen=True)
class Explanation:
    """Contributions of F features to the scores of n users.

    Attributes:
        features: F names, in the model's order.
        arm: (n,) index of the message that was explained.
        score: (n,), money.
        baseline: (n,), the background's average score of that arm, money.
        contributions: (n, F), money; baseline + their sum is the score, up to TOLERANCE.
    """

    features: tuple[str, ...]
    arm: np.ndarray
    score: np.ndarray
    baseline: np.ndarray
    contributions: np.ndarray

    @property
    def residual(self) -> np.ndarray:
        """What the contributions leave unexplained; shape (n,), money."""
        return np.asarray(self.score - self.baseline - self.contributions.sum(axis=1))

    def top(self, row: int, count: int) -> Iterator[tuple[str, float]]:
        """The features that moved a user's score most, with their contributions in money."""
        for j in np.argsort(-np.abs(self.contributions[row]), kind="stable")[:count]:
            yield self.features[j], float(self.contributions[row, j])


def background(model: NumpyModel, columns: Mapping[str, np.ndarray], seed: int) -> Tensors:
    """Tensors `explain.*` of the users to compare with: every 1/BACKGROUND quantile of the best message's score.

    Args:
        model: trained.
        columns: of its training rows.
        seed: of the sample of SAMPLE rows that are scored.
    """
    n = len(next(iter(columns.values())))
    drawn = np.sort(np.random.default_rng(seed).permutation(n)[:SAMPLE])
    sample = {name: column[drawn] for name, column in columns.items()}
    score = scores(model.predict(sample), model.spec.weights.tolist(), model.spec.costs).max(axis=1)
    middles = (np.arange(BACKGROUND) + 0.5) / BACKGROUND * len(score)
    chosen = np.argsort(score, kind="stable")[middles.astype(np.int64)]
    rows = {name: column[chosen] for name, column in sample.items()}
    return {
        "explain.dense": model.encode(rows).dense,
        "explain.rules": model.encode(rows).rules,
        "explain.codes": codes(rows, model.spec.features, model.tensors).astype(np.uint8),
    }


def explain(model: NumpyModel, columns: Mapping[str, np.ndarray], arm: np.ndarray | None = None) -> Explanation:
    """What moved the score of each user.

    Args:
        model: with its background (ModelError: it has none, train again).
        columns: features as for `NumpyModel.predict`, n users.
        arm: (n,) index of the message to explain; default the one with the highest score.
    """
    if "explain.dense" not in model.tensors:
        raise ModelError("the model keeps no users to compare with; train it again with `tactful train`")
    inputs = model.encode(columns)
    score = scores(model.predict(columns), model.spec.weights.tolist(), model.spec.costs)
    best = score.argmax(axis=1) + 1 if arm is None else np.asarray(arm)
    code = codes(columns, model.spec.features, model.tensors)
    rules = unpack(inputs.rules, model.tensors)
    others = {int(a): _Background(model, int(a)) for a in np.unique(best)}
    parts = [others[int(a)].contributions(*row) for *row, a in zip(inputs.dense, rules, code, best, strict=True)]
    return Explanation(
        tuple(f.name for f in model.spec.features),
        best,
        score[np.arange(len(best)), best - 1],
        np.array([others[int(a)].baseline for a in best]),
        np.array(parts).reshape(len(parts), -1),
    )


class _Background:
    """The users compared with, and the slopes of one arm's score on the way from them to another user.

    Shapes: B background users, K members, D dense inputs, R rules, C conditions (pairs of a rule and a feature), F
    features, L = arms * outcomes logits.
    """

    def __init__(self, model: NumpyModel, arm: int) -> None:
        self.model, self.arm, self.t = model, arm, model.tensors
        self.dense, self.rules = self.t["explain.dense"], unpack(self.t["explain.rules"], self.t)
        self.owner = dense_owner(model.spec.features, self.t)
        self.offsets = np.r_[0, np.cumsum(code_counts(model.spec.features))[:-1]]
        self.allowed = allowed_codes(self.t)
        every = np.logical_and.reduceat(self.allowed, self.offsets, axis=0)  # (F, R): the rule allows every code
        self.rule, self.feature = np.nonzero(~every.T)  # of each condition
        self.first, self.nth = np.unique(self.rule, return_index=True, return_inverse=True)[1:]
        self.holds = self._conditions(self.t["explain.codes"].astype(np.int64))
        self.baseline = float(self._score(self._logits(self.dense, self.rules)).mean())

    def contributions(self, dense: np.ndarray, rules: np.ndarray, code: np.ndarray) -> np.ndarray:
        """Contribution of each feature, money; shape (F,).

        Args:
            dense: (D,) of the user, as all three.
            rules: (R,), 0 or 1.
            code: (F,).
        """
        score = float(self._score(self._logits(dense[None], rules[None]))[0])
        share, goal = self._shares(self._conditions(code[None])), score - self.baseline
        limit = TOLERANCE * min(abs(score), abs(goal)) + ROUNDING * (abs(score) + abs(self.baseline))
        steps = STEPS
        while True:
            by_feature = self._integrated(dense, rules, share, steps)
            if abs(goal - by_feature.sum()) <= limit or steps >= MAX_STEPS:
                return by_feature
            steps *= 2

    def _integrated(self, dense: np.ndarray, rules: np.ndarray, share: np.ndarray, steps: int) -> np.ndarray:
        """Midpoint rule along the lines from every background user to this one."""
        step, moved = dense - self.dense, rules - self.rules
        linear = [self._linear(self.dense, self.rules, k) for k in range(self.model.spec.members)]
        change = [self._linear(step, moved, k) for k in range(self.model.spec.members)]
        through_trunk, slopes = np.zeros_like(step, dtype=np.float64), np.zeros_like(np.stack(linear))
        for at in (np.arange(steps) + 0.5) / steps:
            passes = [self._trunk(self.dense + np.float32(at) * step, k) for k in range(len(linear))]
            logits = np.stack([p[-1] + a + at * b for p, a, b in zip(passes, linear, change, strict=True)])
            here = self._slopes(logits) / steps
            slopes += here
            for k, (hidden, deep, _) in enumerate(passes):
                through_trunk += self._backward(here[k].astype(np.float32), hidden, deep, k)
        slope_dense = through_trunk + sum(s @ w.T for s, w in zip(slopes, self.t["skip.weight"], strict=True))
        slope_rules = sum(s @ w.T for s, w in zip(slopes, self.t["rules.weight"], strict=True))
        by_condition = (share * slope_rules[:, self.rule]).sum(axis=0)
        by_rule = np.bincount(self.feature, by_condition, minlength=len(self.offsets))
        by_input = np.bincount(self.owner, (slope_dense * step).sum(axis=0), minlength=len(self.offsets))
        return np.asarray((by_input + by_rule) / len(step))

    def _conditions(self, code: np.ndarray) -> np.ndarray:
        """Which conditions hold; (rows, C), from codes (rows, F)."""
        return np.asarray(self.allowed[self.offsets[self.feature] + code[:, self.feature], self.rule])

    def _shares(self, mine: np.ndarray) -> np.ndarray:
        """Shapley value of each condition in its rule's change from a background user to this one; (B, C).

        Where p conditions hold only for the user, q only for the other, and none for neither, it is
        (p-1)! q! / (p+q)! for each of the p, and -p! (q-1)! / (p+q)! for each of the q; beta(p, q + 1) is the first.
        """
        gained, lost = mine & ~self.holds, self.holds & ~mine
        possible = np.logical_and.reduceat(mine | self.holds, self.first, axis=1)
        p, q = (np.add.reduceat(moved, self.first, axis=1, dtype=np.int64) for moved in (gained, lost))
        up = possible * beta(np.maximum(p, 1), q + 1.0)
        down = possible * beta(np.maximum(q, 1), p + 1.0)
        return np.asarray(gained * up[:, self.nth] - lost * down[:, self.nth])

    def _logits(self, dense: np.ndarray, rules: np.ndarray) -> np.ndarray:
        """Last layer of every member; (K, rows, L)."""
        members = range(self.model.spec.members)
        return np.stack([self._trunk(dense, k)[-1] + self._linear(dense, rules, k) for k in members])

    def _linear(self, dense: np.ndarray, rules: np.ndarray, k: int) -> np.ndarray:
        """The part of the logits that is a weighted sum; (rows, L)."""
        return np.asarray(dense @ self.t["skip.weight"][k] + rules @ self.t["rules.weight"][k], dtype=np.float64)

    def _trunk(self, dense: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Both hidden layers before their ReLU, and the rest of the logits; (rows, 64), (rows, 32), (rows, L)."""
        t = self.t
        hidden = dense @ t["trunk.0.weight"][k] + t["trunk.0.bias"][k]
        deep = np.maximum(hidden, 0) @ t["trunk.1.weight"][k] + t["trunk.1.bias"][k]
        return hidden, deep, np.maximum(deep, 0) @ t["head.weight"][k] + t["head.bias"][k]

    def _backward(self, slope: np.ndarray, hidden: np.ndarray, deep: np.ndarray, k: int) -> np.ndarray:
        """Slope of the score on every dense input through the trunk, from that on the logits; (rows, D)."""
        t = self.t
        at_deep = (slope @ t["head.weight"][k].T) * (deep > 0)
        at_hidden = (at_deep @ t["trunk.1.weight"][k].T) * (hidden > 0)
        return np.asarray(at_hidden @ t["trunk.0.weight"][k].T)

    def _units(self, logits: np.ndarray) -> np.ndarray:
        spec = self.model.spec
        shaped = logits.reshape(*logits.shape[:2], len(spec.arms), len(spec.outcomes))
        return to_units(shaped, self.t, spec)

    def _score(self, logits: np.ndarray) -> np.ndarray:
        """Score of the arm; (rows,), money."""
        mu_hat = shrink(self._units(logits).mean(axis=0), self.t, self.model.spec)
        return scores(mu_hat, self.model.spec.weights.tolist(), self.model.spec.costs)[:, self.arm - 1]

    def _slopes(self, logits: np.ndarray) -> np.ndarray:
        """Slope of the score on every member's logits; (K, rows, L)."""
        spec, a = self.model.spec, self.arm
        mean = self._units(logits).mean(axis=0)
        pulled = shrink(mean, self.t, spec)
        binary = np.array([o.kind == "binary" for o in spec.outcomes])
        # where shrinkage met the edge of [0, 1] the arm's outcome stands still
        moves = ~binary | ((pulled[:, a] > 0) & (pulled[:, a] < 1))
        factor = self.t["shrink.factor"][a - 1]
        by_mean = np.zeros(mean.shape)
        by_mean[:, a] = moves * factor
        by_mean[:, 0] = moves * (1 - factor) - 1.0
        units = logits.reshape(*logits.shape[:2], *mean.shape[1:])
        probability = expit(units)
        by_logit = np.where(binary, probability * (1 - probability), self.t["outcome.scale"])
        return np.asarray((by_logit * by_mean * spec.weights / spec.members).reshape(logits.shape))
