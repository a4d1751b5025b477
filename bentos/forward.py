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
LOWEST = -1e300  # a number below is as good as this one
NOTHING = -1e301  # stands for a missing number


class SmallBatch:
    """Tensors of a model arranged for few rows. Shapes: n rows, F numeric features, K members, A arms, O outcomes."""

    def __init__(self, model: NumpyModel) -> None:
        spec, t = model.spec, model.tensors
        self.model = model
        self.shape = (spec.members, len(spec.arms), len(spec.outcomes))
        offsets = np.r_[0, np.cumsum(code_counts(spec.features))[:-1]]
        numbers = np.array([f.kind == "numeric" for f in spec.features], dtype=bool)
        self._lay_out_numbers(offsets[numbers])
        self._lay_out_texts([f for f in spec.features if f.kind == "string"], offsets[~numbers])
        wide = _side_by_side(t["trunk.0.weight"])
        self.hidden = wide.shape[1]
        self.first = self._in_my_order(np.hstack([wide, _side_by_side(t["skip.weight"])]))
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

    def _lay_out_numbers(self, codes: np.ndarray) -> None:
        """One sorted array of points for all numeric features: a number is looked up once, behind its feature.

        Between two points a number's three inputs are straight lines, and its code is one: a row of `lines` has the
        point, the inputs there, their slopes. A feature's first point is below all numbers: up to it is "missing".
        numpy orders complex numbers by their real part (here the feature), then by their imaginary part (the value).
        """
        t = self.model.tensors
        self.row = np.arange(len(codes))
        points = [self._points(j) for j in self.row.tolist()]
        self.keys = np.concatenate([np.empty(0, dtype=np.complex128), *(1j * p + j for j, p in enumerate(points))])
        self.lines = np.concatenate([np.empty((0, 7)), *(self._lines(j, p) for j, p in enumerate(points))])
        above = [
            np.r_[BINS, cuts.searchsorted(p, side="right")] for p, cuts in zip(points, t["encode.cuts"], strict=True)
        ]
        self.codes = np.concatenate([np.empty(0, dtype=np.int64), *(a + c for a, c in zip(above, codes, strict=True))])

    def _points(self, j: int) -> np.ndarray:
        """Where an input of a feature bends, or its code changes; first the one below all numbers."""
        t = self.model.tensors
        scale, cuts = t["encode.scale"][j], t["encode.cuts"][j]
        clips = t["encode.mean"][j] + np.array([-4, 4]) / scale if scale else np.empty(0)
        found: np.ndarray = np.unique(np.concatenate([t["encode.knots"][j], cuts[np.isfinite(cuts)], clips]))
        return np.concatenate([[NOTHING], found])

    def _lines(self, j: int, points: np.ndarray) -> np.ndarray:
        """(points + 1, 7): missing, then what holds from each point on; the first of these is the lowest number's."""
        t = self.model.tensors
        share, share_scale = t["encode.missing"][j]
        start = np.r_[points[1], points[1:]]
        normal = np.interp(start, t["encode.knots"][j], t["encode.levels"][j])
        score = np.minimum(np.maximum((start - t["encode.mean"][j]) * t["encode.scale"][j], -4), 4)
        inputs = np.stack([normal, score, np.full(len(start), -share * share_scale)], axis=1)
        rise, run = np.diff(inputs[1:], axis=0), np.diff(start[1:])[:, None]
        level = np.zeros((1, 3))  # beyond the first and the last point inputs are constant
        slopes = np.concatenate([level, rise / run, level])
        missing = np.array([[0, 0, 0, (1 - share) * share_scale, 0, 0, 0]])
        return np.concatenate([missing, np.concatenate([start[:, None], inputs, slopes], axis=1)])

    def _in_my_order(self, weights: np.ndarray) -> np.ndarray:
        """Rows for three inputs of each number (zeros where training saw nothing missing), then for the strings."""
        missing = self.model.tensors["encode.missing"][:, 0] > 0
        there = np.column_stack([np.ones((len(missing), 2), dtype=bool), missing]).reshape(-1)
        found = np.zeros((len(there) + self.text_table.shape[1], weights.shape[1]), dtype=weights.dtype)
        found[np.flatnonzero(there)] = weights[: there.sum()]
        found[len(there) :] = weights[there.sum() :]
        return found

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
        n = len(numeric)
        # NaN below all numbers, infinite ones among them: a slope of 0 times infinity would be NaN
        x = np.fmin(np.fmax(np.maximum(numeric, LOWEST), NOTHING), -LOWEST)
        keys = np.empty(x.shape, dtype=np.complex128)
        keys.real, keys.imag = self.row, x
        found = self.keys.searchsorted(keys) + self.row  # every feature has one line more than points
        lines = self.lines.take(found, axis=0)
        inputs = lines[..., 1:4] + lines[..., 4:] * (x - lines[..., 0])[..., None]
        dense, codes = [inputs.reshape(n, -1)], [self.codes.take(found)]
        if self.texts:
            text = np.array(
                [[i.get(v, o) for v, (i, o) in zip(row, self.texts, strict=True)] for row in strings.tolist()]
            )
            dense.append(np.add.reduce(self.text_table.take(text, axis=0), axis=1))
            codes.append(text + self.text_shift)
        allowed = self.model.tensors["rules.allowed"].take(np.concatenate(codes, axis=1), axis=0)
        bits = np.bitwise_and.reduce(allowed, axis=1)
        rules = np.unpackbits(bits, axis=1, count=self.rule_count).astype(np.float32)
        return np.concatenate(dense, axis=1, dtype=np.float32), rules


def _by_member(values: np.ndarray, members: int) -> np.ndarray:
    """(n, K * b) -> (K, n, b)."""
    return values.reshape(len(values), members, -1).transpose(1, 0, 2)


def _side_by_side(weights: np.ndarray) -> np.ndarray:
    """(K, a, b) -> (a, K * b): all members in one product."""
    return np.ascontiguousarray(weights.transpose(1, 0, 2).reshape(weights.shape[1], -1))


def _rows(bias: np.ndarray) -> np.ndarray:
    """(K, b) -> (K, 1, b)."""
    return bias.reshape(len(bias), 1, -1)
