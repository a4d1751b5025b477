"""The forward pass for a handful of users: `NumpyModel.predict` without its loops over features and members.

For one user those loops are nearly all of the time. Here every feature is looked up at once and the members' weights
lie side by side. Same tensors, same answers (a test compares them); from SMALL users on the plain code is as fast.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from models.encode import BINS, code_counts
from models.forward import NumpyModel
from models.spec import Feature

SMALL = 64


class SmallBatch:
    """Tensors of a model arranged for few rows. Shapes: n rows, F numeric features, K members, A arms, O outcomes."""

    def __init__(self, model: NumpyModel) -> None:
        spec, t = model.spec, model.tensors
        self.model = model
        self.shape = (spec.members, len(spec.arms), len(spec.outcomes))
        self._lay_out_columns()
        self._lay_out_search()
        wide = _side_by_side(t["trunk.0.weight"])
        self.hidden = wide.shape[1]
        first = np.hstack([wide, _side_by_side(t["skip.weight"])])
        # its rows in the order in which _encode finds the inputs: numbers, then strings
        self.first = np.ascontiguousarray(np.concatenate([first[self.number_at], first[len(self.number_at) :]]))
        self.trunk_bias = t["trunk.0.bias"].reshape(-1)
        self.rules = _side_by_side(t["rules.weight"])
        self.rule_count = int(t["rules.count"][0])
        self.deep, self.deep_bias = t["trunk.1.weight"], _rows(t["trunk.1.bias"])
        self.head, self.head_bias = t["head.weight"], _rows(t["head.bias"])
        self._lay_out_units()

    def _lay_out_units(self) -> None:
        """`models.forward.to_units` and `shrink` in few sums: mu * keep + control * pull + shift, within limits."""
        spec, t = self.model.spec, self.model.tensors
        self.binary = np.array([outcome.kind == "binary" for outcome in spec.outcomes])
        self.unit_scale, self.unit_mean = t["outcome.scale"], t["outcome.mean"]
        self.keep = np.concatenate([[1.0], t["shrink.factor"]])[:, None]
        self.pull = 1 - self.keep
        self.shift = self.pull * np.concatenate([np.zeros_like(t["shrink.mean"][:1]), t["shrink.mean"]])
        self.least, self.most = np.where(self.binary, 0.0, -np.inf), np.where(self.binary, 1.0, np.inf)

    def _lay_out_columns(self) -> None:
        """Where each numeric feature's inputs stand in the dense matrix, and its codes among the rules' codes."""
        spec, t = self.model.spec, self.model.tensors
        offsets = np.r_[0, np.cumsum(code_counts(spec.features))[:-1]]
        numbers = np.array([f.kind == "numeric" for f in spec.features], dtype=bool)
        self.number_code = offsets[numbers]
        missing = t["encode.missing"]
        self.missing = np.flatnonzero(missing[:, 0])
        self.share, self.share_scale = missing[self.missing].T
        # each numeric feature: its normal, its score, and whether it is missing where training saw that
        starts = 2 * np.arange(len(missing)) + np.cumsum(missing[:, 0] > 0) - (missing[:, 0] > 0)
        self.number_at = np.concatenate([starts, starts + 1, starts[self.missing] + 2])
        self._lay_out_texts([f for f in spec.features if f.kind == "string"], offsets[~numbers])

    def _lay_out_texts(self, features: list[Feature], offsets: np.ndarray) -> None:
        """One table for all strings: a row for each value's code, zero in the columns of the other features."""
        tables = [self.model.tensors[f"encode.category.{f.name}"] for f in features]
        rows = [0, *np.cumsum([len(table) for table in tables], dtype=np.int64).tolist()]
        columns = [0, *np.cumsum([table.shape[1] for table in tables], dtype=np.int64).tolist()]
        self.text_table = np.zeros((rows[-1], columns[-1]), dtype=np.float32)
        self.texts = []
        for f, table, row, column in zip(features, tables, rows, columns, strict=False):
            self.text_table[row : row + len(table), column : column + table.shape[1]] = table
            self.texts.append(({value: row + i for i, value in enumerate(f.categories)}, row + len(f.categories)))
        self.text_shift = offsets - rows[:-1]

    def _lay_out_search(self) -> None:
        """One sorted array for the knots of all features, one for their cuts: a number is looked up behind its feature.

        numpy orders complex numbers by their real part (here the feature), then by their imaginary part (the value).
        """
        t = self.model.tensors
        knots, levels, cuts = t["encode.knots"], t["encode.levels"], t["encode.cuts"]
        self.row = np.arange(len(knots))
        self.knot_keys, self.cut_keys = _keys(knots), _keys(cuts)
        self.first_knot = self.row * knots.shape[1]
        self.last_knot = self.first_knot + knots.shape[1] - 2
        self.low, self.high = knots[:, 0], knots[:, -1]
        rise, run = np.diff(levels, append=levels[:, -1:]), np.diff(knots, append=knots[:, -1:])
        self.slopes = np.divide(rise, run, out=np.zeros_like(rise), where=run > 0).reshape(-1)
        self.knots, self.levels = knots.reshape(-1), levels.reshape(-1)
        self.code_shift, self.unknown_code = self.number_code - self.row * cuts.shape[1], self.number_code + BINS
        self.mean, self.scale = t["encode.mean"], t["encode.scale"]

    def predict(self, numeric: np.ndarray, strings: np.ndarray) -> np.ndarray:
        """mu_hat, float64 (n, A, O).

        Args:
            numeric: float64 (n, F) with NaN, in the order of the model's features.
            strings: object (n, number of string features) with None, likewise.
        """
        n, (members, n_arms, n_outcomes) = len(numeric), self.shape
        dense, rules = self._encode(numeric, strings)
        first = dense @ self.first
        skip = first[:, self.hidden :] + rules @ self.rules
        hidden = np.maximum(first[:, : self.hidden] + self.trunk_bias, 0)
        hidden = np.maximum(_by_member(hidden, members) @ self.deep + self.deep_bias, 0)
        logits = hidden @ self.head + self.head_bias + _by_member(skip, members)
        logits = logits.reshape(members, n, n_arms, n_outcomes)
        units = np.where(self.binary, expit(logits), logits * self.unit_scale + self.unit_mean)
        mu_hat = np.add.reduce(units, axis=0) / members
        mu_hat = mu_hat * self.keep + mu_hat[:, :1] * self.pull + self.shift
        bounded: np.ndarray = np.minimum(np.maximum(mu_hat, self.least), self.most)
        return bounded

    def _encode(self, numeric: np.ndarray, strings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Dense inputs float32 (n, width), numbers first, and rules float32 (n, n_rules), as models.encode has them."""
        unknown = np.isnan(numeric)
        known = ~unknown
        x = np.where(unknown, 0.0, numeric)
        keys = np.empty(x.shape, dtype=np.complex128)
        keys.real, keys.imag = self.row, x
        score = np.minimum(np.maximum((x - self.mean) * self.scale, -4), 4)
        missing = (unknown[:, self.missing] - self.share) * self.share_scale
        inputs = [self._normal(x, keys) * known, score * known, missing]
        codes = [np.where(unknown, self.unknown_code, self.cut_keys.searchsorted(keys) + self.code_shift)]
        if self.texts:
            text = np.array(
                [[i.get(v, o) for v, (i, o) in zip(row, self.texts, strict=True)] for row in strings.tolist()]
            )
            inputs.append(np.add.reduce(self.text_table[text], axis=1))
            codes.append(text + self.text_shift)
        dense = np.concatenate(inputs, axis=1, dtype=np.float32)
        allowed = self.model.tensors["rules.allowed"][np.concatenate(codes, axis=1)]
        bits = np.bitwise_and.reduce(allowed, axis=1)
        return dense, np.unpackbits(bits, axis=1, count=self.rule_count).astype(np.float32)

    def _normal(self, x: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """np.interp of every feature at once; shape (n, F)."""
        left = self.knot_keys.searchsorted(keys, side="right") - 1
        left = np.minimum(np.maximum(left, self.first_knot), self.last_knot)
        inside = np.minimum(np.maximum(x, self.low), self.high)
        found: np.ndarray = self.levels[left] + self.slopes[left] * (inside - self.knots[left])
        return found


def _keys(table: np.ndarray) -> np.ndarray:
    """(F, b), sorted in each row -> F * b sorted complex numbers."""
    keys = np.empty(table.shape, dtype=np.complex128)
    keys.real, keys.imag = np.arange(len(table))[:, None], table
    return keys.reshape(-1)


def _by_member(values: np.ndarray, members: int) -> np.ndarray:
    """(n, K * b) -> (K, n, b)."""
    return values.reshape(len(values), members, -1).transpose(1, 0, 2)


def _side_by_side(weights: np.ndarray) -> np.ndarray:
    """(K, a, b) -> (a, K * b): all members in one product."""
    return np.ascontiguousarray(weights.transpose(1, 0, 2).reshape(weights.shape[1], -1))


def _rows(bias: np.ndarray) -> np.ndarray:
    """(K, b) -> (K, 1, b)."""
    return bias.reshape(len(bias), 1, -1)
