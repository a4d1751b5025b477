"""The network without torch: raw columns in, expected outcome per arm out. What serves is exactly what was saved.

A model folder holds `weights.safetensors` (every tensor, encoding included) and `model.json` (`models.spec.ModelSpec`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from scipy.special import expit, ndtri

from campaign import ModelError
from models.encode import Encoded, Tensors, encode
from models.inputs import check_alpha
from models.spec import ModelSpec

_DTYPES: dict[str, type] = {"numeric": np.float64, "string": object}
# without these no answer can be given; those of intervals and explanations are missed where they are asked for
TENSORS = (
    *(f"encode.{name}" for name in ("knots", "levels", "mean", "scale", "missing", "cuts")),
    *("rules.allowed", "rules.count", "rules.weight", "skip.weight", "head.weight", "head.bias"),
    *(f"trunk.{layer}.{part}" for layer in (0, 1) for part in ("weight", "bias")),
    *("outcome.mean", "outcome.scale", "shrink.mean", "shrink.factor"),
)
CHUNK_ROWS = 8192  # bounds memory: rules are unpacked to float32 one chunk at a time


@dataclass(frozen=True)
class NumpyModel:
    """A trained ensemble; pure numpy, safe to share between threads."""

    spec: ModelSpec
    tensors: Tensors

    @classmethod
    def load(cls, folder: Path | str) -> NumpyModel:
        """Read a model folder.

        Raises: ModelError: a file is missing, unreadable, or differs from the hash in sha256.json beside it.
        """
        files = {name: _read(Path(folder) / name) for name in ("model.json", "weights.safetensors")}
        _verify(Path(folder) / "sha256.json", files)
        try:
            spec = ModelSpec.from_json(json.loads(files["model.json"]))
            tensors = load_tensors(files["weights.safetensors"])
            _check_fit(spec, tensors)
        except (ValueError, SafetensorError) as error:
            raise ModelError(f"{folder}: not a readable model folder ({error}); train or fetch it again") from None
        return cls(spec, tensors)

    def predict(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Expected outcome of each row under each arm, in outcome units (probability where binary).

        Args:
            columns: feature name -> (n,) float64 with NaN, or object with None; all of the same length.

        Returns: mu_hat, float64 (n, n_arms, n_outcomes): mean of the members, uplifts shrunk towards their mean.
        """
        return shrink(self.members(columns).mean(axis=0), self.tensors, self.spec)

    def members(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Each member's own answer, before shrinkage; float64 (members, n, n_arms, n_outcomes)."""
        return member_outputs(self.encode(columns), self.tensors, self.spec)

    def interval(self, columns: Mapping[str, np.ndarray], alpha: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
        """Limits of each user's uplifts: to report, not to decide by.

        Args:
            columns: as for `predict`.
            alpha: 1 - confidence level, in (0, 1).

        Returns: lower and upper limits, each (n, n_messages, n_outcomes + 1); last the score's, costs subtracted.

        Raises: ModelError: the model was saved before intervals were. DataError: alpha is not in (0, 1).

        Source: `models.shrinkage.error_covariance`; coverage of the score's limits on simulated worlds is in
            docs/benchmarks.md. Its constants were chosen for the score alone: 90% limits of a single outcome were
            found to hold for between .4 and 1.0 of the users.
        """
        half = self.half_width(alpha)
        mu_hat = self.predict(columns)
        uplift = mu_hat[:, 1:] - mu_hat[:, :1]
        score = uplift @ self.spec.weights - np.asarray(self.spec.costs)[1:]
        center = np.concatenate([uplift, score[..., None]], axis=-1)
        return center - half, center + half

    def half_width(self, alpha: float = 0.1) -> np.ndarray:
        """Half the width of `interval`, the same for every user; (n_messages, n_outcomes + 1), last the score's.

        Raises: ModelError: the model was saved before intervals were. DataError: alpha is not in (0, 1).
        """
        check_alpha(alpha)
        if "interval.covariance" not in self.tensors:
            raise ModelError("the model has no tensor 'interval.covariance': saved before intervals were; train again")
        every = np.vstack([np.eye(len(self.spec.outcomes)), self.spec.weights])  # each outcome, then the score
        sd = np.sqrt(np.einsum("jo,aop,jp->aj", every, self.tensors["interval.covariance"], every))
        return np.asarray(ndtri(1 - alpha / 2) * sd)

    def reweighted(self, weights: Mapping[str, float], costs: Sequence[float] = ()) -> NumpyModel:
        """The same network with another worth of outcomes and messages: predictions stay, scores change.

        Args:
            weights: outcome -> worth of one unit; every outcome of the model.
            costs: per arm, in the unit of the score; default: as they are.

        Raises: ModelError: other outcomes, a weight that is no finite number, or not one cost per arm.
        """
        names = [o.name for o in self.spec.outcomes]
        if set(weights) != set(names):
            raise ModelError(f"weights for {sorted(weights)}, the model predicts {names}; give one for each of these")
        if not np.isfinite([*weights.values(), *costs]).all():
            raise ModelError(f"weights == {dict(weights)}, costs == {list(costs)}, must be finite numbers")
        costs = tuple(costs) or self.spec.costs
        if len(costs) != len(self.spec.arms):
            raise ModelError(f"{len(costs)} costs for the arms {list(self.spec.arms)}; give one per arm")
        outcomes = tuple(replace(o, weight=float(weights[o.name])) for o in self.spec.outcomes)
        return NumpyModel(replace(self.spec, outcomes=outcomes, costs=costs), self.tensors)

    def encode(self, columns: Mapping[str, np.ndarray]) -> Encoded:
        """The network's input for raw columns (ModelError: a column is missing)."""
        missing = [f.name for f in self.spec.features if f.name not in columns]
        if missing:
            raise ModelError(f"columns {missing} are missing; the model needs {[f.name for f in self.spec.features]}")
        typed: dict[str, np.ndarray] = {
            f.name: np.asarray(columns[f.name], dtype=_DTYPES[f.kind]) for f in self.spec.features
        }
        return encode(typed, self.spec.features, self.tensors)


def member_outputs(inputs: Encoded, tensors: Tensors, spec: ModelSpec, member: int | None = None) -> np.ndarray:
    """Expected outcomes by member (or by one of them); float64 (members, n, n_arms, n_outcomes)."""
    which = range(spec.members) if member is None else [member]
    n_arms, n_outcomes = len(spec.arms), len(spec.outcomes)
    out = np.empty((len(which), len(inputs.dense), n_arms, n_outcomes))
    for start in range(0, len(inputs.dense), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        rules = unpack(inputs.rules[rows], tensors)
        for i, k in enumerate(which):
            out[i, rows] = _logits(inputs.dense[rows], rules, tensors, k).reshape(-1, n_arms, n_outcomes)
    return to_units(out, tensors, spec)


def unpack(bits: np.ndarray, tensors: Tensors) -> np.ndarray:
    """Packed rule bits as 0.0 and 1.0; float32 (n, n_rules)."""
    return np.unpackbits(bits, axis=1, count=int(tensors["rules.count"][0])).astype(np.float32)


def _logits(dense: np.ndarray, rules: np.ndarray, tensors: Tensors, member: int) -> np.ndarray:
    hidden = dense
    for layer in ("trunk.0", "trunk.1"):
        hidden = np.maximum(hidden @ tensors[f"{layer}.weight"][member] + tensors[f"{layer}.bias"][member], 0)
    skip = dense @ tensors["skip.weight"][member] + rules @ tensors["rules.weight"][member]
    out: np.ndarray = hidden @ tensors["head.weight"][member] + tensors["head.bias"][member] + skip
    return out


def to_units(logits: np.ndarray, tensors: Tensors, spec: ModelSpec) -> np.ndarray:
    """From the network's last layer to outcome units: a probability, or mean + scale * z."""
    units = np.asarray(logits, dtype=np.float64) * tensors["outcome.scale"] + tensors["outcome.mean"]
    binary = _binary(spec)
    units[..., binary] = expit(logits[..., binary])
    return units


def shrink(mu_hat: np.ndarray, tensors: Tensors, spec: ModelSpec) -> np.ndarray:
    """Pull each arm's uplifts towards their mean by the share of their spread that is noise; control stays."""
    uplift, mean = mu_hat[..., 1:, :] - mu_hat[..., :1, :], tensors["shrink.mean"]
    out = mu_hat.copy()
    out[..., 1:, :] = mu_hat[..., :1, :] + (mean + tensors["shrink.factor"][:, None] * (uplift - mean))
    binary = _binary(spec)
    out[..., binary] = np.minimum(np.maximum(out[..., binary], 0), 1)
    return out


def _binary(spec: ModelSpec) -> list[int]:
    return [j for j, outcome in enumerate(spec.outcomes) if outcome.kind == "binary"]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}; a model folder has model.json and weights.safetensors") from None


def _check_fit(spec: ModelSpec, tensors: Tensors) -> None:
    """Raise ValueError where the tensors are not those of this spec."""
    kinds = sorted({f.kind for f in spec.features} - set(_DTYPES))
    if kinds:
        raise ValueError(f"model.json has features of kind {kinds}, expected {list(_DTYPES)}")
    texts = [f"encode.category.{f.name}" for f in spec.features if f.kind == "string"]
    missing = sorted({*TENSORS, *texts} - set(tensors))
    if missing:
        raise ValueError(f"weights.safetensors lacks {missing}")
    expected = (spec.members, 1, len(spec.arms) * len(spec.outcomes))
    if tensors["head.bias"].shape != expected:
        raise ValueError(f"head.bias has shape {tensors['head.bias'].shape}, model.json asks for {expected}")


def _verify(manifest: Path, files: Mapping[str, bytes]) -> None:
    if not manifest.exists():
        return
    try:
        expected = dict(json.loads(_read(manifest)))
    except (TypeError, ValueError) as error:
        raise ModelError(f"{manifest}: no table of hashes ({error}); fetch or train the model again") from None
    for name, content in files.items():
        found = hashlib.sha256(content).hexdigest()
        if expected.get(name) != found:
            raise ModelError(
                f"{manifest.parent / name}: sha256 is {found[:12]}, sha256.json says {str(expected.get(name))[:12]}; "
                "the file changed after training; fetch or train it again"
            )
