"""The forward pass for a handful of users: `NumpyModel.predict` without its loops over features and members.

For one user those loops are nearly all of the time. Here every feature is looked up at once and the members' weights
lie side by side. Same tensors, same answers (a test compares them); from SMALL users on the plain code is as fast.
"""

from __future__ import annotations

import numpy as np

from models.encode import BINS, code_counts
from models.forward import NumpyModel, shrink, to_units

SMALL = 64


class SmallBatch:
    """Tensors of a model arranged for few rows. Shapes: n rows, F numeric features, K members, A arms, O outcomes."""

    def __init__(self, model: NumpyModel) -> None:
        spec, t = model.spec, model.tensors
        self.model = model
        self.shape = (spec.members, len(spec.arms), len(spec.outcomes))
        self._lay_out_columns()
        self.knots, self.levels, self.cuts = t["encode.knots"], t["encode.levels"], t["encode.cuts"]
        rise, run = np.diff(self.levels), np.diff(self.knots)
        self.slopes = np.divide(rise, run, out=np.zeros_like(rise), where=run > 0)
        self.mean, self.scale = t["encode.mean"], t["encode.scale"]
        self.row = np.arange(len(self.mean))
        self.skip = _side_by_side(t["skip.weight"])
        self.rules = _side_by_side(t["rules.weight"])
        self.rule_count = int(t["rules.count"][0])
        self.trunk = _side_by_side(t["trunk.0.weight"])
        self.trunk_bias = t["trunk.0.bias"].reshape(-1)
        self.deep, self.deep_bias = t["trunk.1.weight"], _rows(t["trunk.1.bias"])
        self.head, self.head_bias = t["head.weight"], _rows(t["head.bias"])

    def _lay_out_columns(self) -> None:
        """Where each feature's inputs stand in the dense matrix, and its codes among the rules' codes."""
        spec, t = self.model.spec, self.model.tensors
        offsets = np.r_[0, np.cumsum(code_counts(spec.features))[:-1]]
        kinds = np.array([f.kind == "numeric" for f in spec.features])
        self.number_code, self.text_code = offsets[kinds], offsets[~kinds]
        self.normal_at, self.score_at, self.missing = [], [], []
        width = 0
        for j, (share, scale) in enumerate(t["encode.missing"]):
            self.normal_at.append(width)
            self.score_at.append(width + 1)
            width += 2
            if share:
                self.missing.append((j, width, share, scale))
                width += 1
        self.texts = []
        for f in spec.features:
            if f.kind == "string":
                table = t[f"encode.category.{f.name}"]
                codes = {value: i for i, value in enumerate(f.categories)}
                self.texts.append((codes, len(f.categories), slice(width, width + table.shape[1]), table))
                width += table.shape[1]
        self.width = width

    def predict(self, numeric: np.ndarray, strings: np.ndarray) -> np.ndarray:
        """mu_hat, float64 (n, A, O).

        Args:
            numeric: float64 (n, F) with NaN, in the order of the model's features.
            strings: object (n, number of string features) with None, likewise.
        """
        n, (members, n_arms, n_outcomes) = len(numeric), self.shape
        dense, rules = self._encode(numeric, strings)
        hidden = np.maximum(dense @ self.trunk + self.trunk_bias, 0).reshape(n, members, -1).transpose(1, 0, 2)
        hidden = np.maximum(hidden @ self.deep + self.deep_bias, 0)
        skip = (dense @ self.skip + rules @ self.rules).reshape(n, members, -1).transpose(1, 0, 2)
        logits = (hidden @ self.head + self.head_bias + skip).reshape(members, n, n_arms, n_outcomes)
        units = to_units(logits, self.model.tensors, self.model.spec)
        return shrink(units.mean(axis=0), self.model.tensors, self.model.spec)

    def _encode(self, numeric: np.ndarray, strings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Dense inputs float32 (n, width) and rules float32 (n, n_rules), as models.encode has them."""
        unknown = np.isnan(numeric)
        x = np.where(unknown, 0, numeric)
        dense = np.empty((len(x), self.width), dtype=np.float32)
        dense[:, self.normal_at] = np.where(unknown, 0, self._quantile_normal(x))
        dense[:, self.score_at] = np.where(unknown, 0, np.clip((x - self.mean) * self.scale, -4, 4))
        for j, at, share, scale in self.missing:
            dense[:, at] = (unknown[:, j] - share) * scale
        codes = np.where(unknown, BINS, (self.cuts < x[:, :, None]).sum(axis=2)) + self.number_code
        texts = np.empty((len(x), len(self.texts)), dtype=np.int64)
        for k, (index, other, columns, table) in enumerate(self.texts):
            found = [index.get(value, other) for value in strings[:, k]]
            dense[:, columns] = table[found]
            texts[:, k] = found
        allowed = self.model.tensors["rules.allowed"][np.concatenate([codes, texts + self.text_code], axis=1)]
        bits = np.bitwise_and.reduce(allowed, axis=1)
        return dense, np.unpackbits(bits, axis=1, count=self.rule_count).astype(np.float32)

    def _quantile_normal(self, x: np.ndarray) -> np.ndarray:
        """np.interp of every feature at once; shape (n, F)."""
        inside = np.clip(x, self.knots[:, 0], self.knots[:, -1])
        left = np.clip((self.knots <= inside[:, :, None]).sum(axis=2) - 1, 0, self.knots.shape[1] - 2)
        found: np.ndarray = self.levels[self.row, left] + self.slopes[self.row, left] * (
            inside - self.knots[self.row, left]
        )
        return found


def _side_by_side(weights: np.ndarray) -> np.ndarray:
    """(K, a, b) -> (a, K * b): all members in one product."""
    return np.ascontiguousarray(weights.transpose(1, 0, 2).reshape(weights.shape[1], -1))


def _rows(bias: np.ndarray) -> np.ndarray:
    """(K, b) -> (K, 1, b)."""
    return bias.reshape(len(bias), 1, -1)
