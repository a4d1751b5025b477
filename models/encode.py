"""From raw feature columns to the network's input. Training and serving call this one function, numpy only.

A column becomes two things. **Dense** inputs: numeric -> quantile-normal and clipped z-score (and whether it was
missing, where training saw that), string -> centred one-hot. **Codes**: numeric -> which of 32 quantile bins (code 32
= missing), string -> which category (last code = unseen). A **rule** is a conjunction of allowed codes: `x > median`
is one, so is `country in (US, GB) and 2 < sessions_7d <= 9`. All rules of a row are found by one bitwise AND.

Shape:
    Input: columns of n rows. Output: `Encoded(dense (n, n_dense) float32, rules (n, ceil(n_rules / 8)) uint8)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from campaign import DataError
from models.spec import Feature

Tensors = dict[str, np.ndarray]

BINS = 32  # quantile bins of a numeric column; code BINS is "missing"
KNOTS = 201  # of the quantile-normal transform; its outer levels .001 and .999 clip at +-3.09 sd
MAX_CATEGORIES = 64
MIN_CATEGORY_ROWS = 20  # rarer levels are one level with everything unseen


class Encoded(NamedTuple):
    """Network input of n rows: dense float32 (n, n_dense); packed rule bits uint8 (n, ceil(n_rules / 8))."""

    dense: np.ndarray
    rules: np.ndarray


LARGEST = 1e100  # sums of squares of larger values overflow, and every prediction would be NaN


def fit_features(columns: Mapping[str, np.ndarray]) -> tuple[Feature, ...]:
    """Features with their categories, from training columns (object = string, else numeric).

    Raises: DataError: an infinite value in a numeric column, or one whose square would be.
    """
    features = []
    for name, column in columns.items():
        if column.dtype == object:
            features.append(Feature(name, "string", _categories(column)))
            continue
        beyond = np.abs(column) > LARGEST
        if beyond.any():
            first = int(beyond.argmax())
            raise DataError(
                f"feature {name!r}: {int(beyond.sum())} values are infinite or beyond {LARGEST:g} (first: row {first}, "
                f"{column[first]:g}); use NaN for what is not known"
            )
        features.append(Feature(name, "numeric"))
    return tuple(features)


def _categories(column: np.ndarray) -> tuple[str | None, ...]:
    present = np.array([v is not None for v in column], dtype=bool)
    levels, counts = np.unique(column[present].astype(str), return_counts=True)
    order = np.lexsort((levels, -counts))[:MAX_CATEGORIES]
    common = sorted(str(levels[i]) for i in order if counts[i] >= min(MIN_CATEGORY_ROWS, len(column) / 10))
    missing = len(column) - int(present.sum())
    return (*common, None) if missing else tuple(common)


def fit_encoding(columns: Mapping[str, np.ndarray], features: Sequence[Feature]) -> Tensors:
    """Learn the tensors `encode` needs, without any rule but the octile steps of each numeric column."""
    numeric = [columns[f.name] for f in features if f.kind == "numeric"]
    state: Tensors = {
        "encode.knots": np.zeros((len(numeric), KNOTS)),
        "encode.levels": np.zeros((len(numeric), KNOTS)),
        "encode.mean": np.zeros(len(numeric)),
        "encode.scale": np.zeros(len(numeric)),
        "encode.missing": np.zeros((len(numeric), 2)),
        "encode.cuts": np.full((len(numeric), BINS - 1), np.inf),
    }
    for j, column in enumerate(numeric):
        seen = column[~np.isnan(column)]
        share = 1 - len(seen) / max(len(column), 1)
        if 0 < share < 1:
            state["encode.missing"][j] = share, 1 / max(np.sqrt(share * (1 - share)), 0.3)
        if len(seen) and seen.min() < seen.max():
            spread = seen.std()  # 0 where squares underflow
            state["encode.mean"][j], state["encode.scale"][j] = seen.mean(), 1 / spread if spread else 0
            state["encode.knots"][j], state["encode.levels"][j] = _quantile_normal(seen)
            cuts = np.unique(np.quantile(seen, np.arange(1, BINS) / BINS, method="lower"))
            cuts = cuts[cuts < seen.max()]
            state["encode.cuts"][j, : len(cuts)] = cuts
    for f in features:
        if f.kind == "string":
            state[f"encode.category.{f.name}"] = _category_table(category_codes(columns[f.name], f.categories), f)
    return state | rule_tensors(octile_steps(numeric, state["encode.cuts"], features))


def _quantile_normal(seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Knots and their standard normal scores; a tied value gets the mean level of its ties, padding repeats the end."""
    levels = np.linspace(0.001, 0.999, KNOTS)
    knots, group = np.unique(np.quantile(seen, levels), return_inverse=True)
    mean_level = np.bincount(group, weights=levels) / np.bincount(group)
    pad = (0, KNOTS - len(knots))
    return np.pad(knots, pad, mode="edge"), np.pad(ndtri(mean_level), pad, mode="edge")


def _category_table(codes: np.ndarray, feature: Feature) -> np.ndarray:
    """Row of each code: centred one-hot over max(sd, .3); a code that training never saw is the average user."""
    share = np.bincount(codes, minlength=len(feature.categories) + 1) / max(len(codes), 1)
    table: np.ndarray = (np.eye(len(share)) - share) / np.maximum(np.sqrt(share * (1 - share)), 0.3)
    table[share == 0] = 0
    table[:, share == 0] = 0
    return table.astype(np.float32)


def category_codes(column: np.ndarray, categories: Sequence[str | None]) -> np.ndarray:
    """Index of each value among `categories`; the number of categories where it is none of them. Shape (n,) int64."""
    index = {value: i for i, value in enumerate(categories)}
    other = len(categories)
    missing = index.get(None, other)
    found = (index.get(value, other) if isinstance(value, str) else missing for value in column)
    return np.fromiter(found, dtype=np.int64, count=len(column))


def code_counts(features: Sequence[Feature]) -> np.ndarray:
    """Number of codes of each feature: bins + missing, or categories + unseen. Shape (n_features,)."""
    return np.array([BINS + 1 if f.kind == "numeric" else len(f.categories) + 1 for f in features])


def codes(columns: Mapping[str, np.ndarray], features: Sequence[Feature], state: Tensors) -> np.ndarray:
    """Code of every feature; shape (n, n_features) int64."""
    cuts = iter(state["encode.cuts"])
    parts = []
    for f in features:
        column = columns[f.name]
        if f.kind == "string":
            parts.append(category_codes(column, f.categories))
        else:
            # side="left": code <= i exactly where x <= cut i
            parts.append(np.where(np.isnan(column), BINS, np.searchsorted(next(cuts), column, side="left")))
    return np.column_stack(parts)


def octile_steps(numeric: Sequence[np.ndarray], cuts: np.ndarray, features: Sequence[Feature]) -> np.ndarray:
    """Rules "x > octile" of every numeric column, each distinct step once; allowed codes (n_codes, n_rules) bool."""
    offsets = np.r_[0, np.cumsum(code_counts(features))]
    where = [i for i, f in enumerate(features) if f.kind == "numeric"]
    rules = []
    for j, column in enumerate(numeric):
        seen = column[~np.isnan(column)]
        if not len(seen):
            continue
        octiles = np.quantile(seen, np.arange(1, 8) / 8, method="lower")
        finite = cuts[j][np.isfinite(cuts[j])]
        for cut in np.flatnonzero(np.isin(finite, octiles)):
            allowed = np.ones(offsets[-1], dtype=bool)
            start = offsets[where[j]]
            allowed[start : start + BINS + 1] = False
            allowed[start + cut + 1 : start + BINS] = True
            rules.append(allowed)
    return np.array(rules, dtype=bool).reshape(len(rules), int(offsets[-1])).T


def rule_tensors(allowed: np.ndarray) -> Tensors:
    """Tensors of the rules, from allowed codes (n_codes, n_rules) bool."""
    return {"rules.allowed": np.packbits(allowed, axis=1), "rules.count": np.array([allowed.shape[1]])}


def allowed_codes(state: Tensors) -> np.ndarray:
    """Inverse of `rule_tensors`: allowed codes (n_codes, n_rules) bool."""
    return np.unpackbits(state["rules.allowed"], axis=1, count=int(state["rules.count"][0])).astype(bool)


def rule_bits(code: np.ndarray, features: Sequence[Feature], state: Tensors) -> np.ndarray:
    """Which rules hold in each row, packed; shape (n, ceil(n_rules / 8)) uint8."""
    allowed = state["rules.allowed"]
    offsets = np.r_[0, np.cumsum(code_counts(features))[:-1]]
    bits = np.full((len(code), allowed.shape[1]), 255, dtype=np.uint8)
    for j, offset in enumerate(offsets):
        np.bitwise_and(bits, allowed[offset + code[:, j]], out=bits)
    return bits


def encode(columns: Mapping[str, np.ndarray], features: Sequence[Feature], state: Tensors) -> Encoded:
    """Network input of raw columns, as `models.spec.columns_of` gives them."""
    return Encoded(dense_inputs(columns, features, state), rule_bits(codes(columns, features, state), features, state))


def dense_inputs(columns: Mapping[str, np.ndarray], features: Sequence[Feature], state: Tensors) -> np.ndarray:
    """Quantile-normal, z-score and missing indicators of numeric columns, one-hot of strings; float32 (n, n_dense)."""
    parts: list[np.ndarray] = []
    numeric = [columns[f.name] for f in features if f.kind == "numeric"]
    for j, column in enumerate(numeric):
        unknown = np.isnan(column)
        normal = np.interp(column, state["encode.knots"][j], state["encode.levels"][j])
        finite = np.clip(column, -LARGEST, LARGEST)  # an infinite value times the scale of a constant column is NaN
        score = np.clip((finite - state["encode.mean"][j]) * state["encode.scale"][j], -4, 4)
        parts += [np.where(unknown, 0, normal), np.where(unknown, 0, score)]
        share, scale = state["encode.missing"][j]
        if share:
            parts.append((unknown - share) * scale)
    parts += [
        state[f"encode.category.{f.name}"][category_codes(columns[f.name], f.categories)].T
        for f in features
        if f.kind == "string"
    ]
    return np.ascontiguousarray(np.vstack(parts).T, dtype=np.float32)


def dense_owner(features: Sequence[Feature], state: Tensors) -> np.ndarray:
    """Which feature each dense input comes from; shape (n_dense,), index into `features`."""
    missing = iter(state["encode.missing"][:, 0])
    numbers = [np.full(2 + bool(next(missing)), i) for i, f in enumerate(features) if f.kind == "numeric"]
    texts = [
        np.full(state[f"encode.category.{f.name}"].shape[1], i) for i, f in enumerate(features) if f.kind == "string"
    ]
    return np.concatenate([*numbers, *texts])
