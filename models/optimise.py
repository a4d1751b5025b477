"""The optimiser loop: shuffled contiguous slices of in-memory arrays, one fused AdamW step each, one thread.

A DataLoader that collates single rows is about twenty times slower on nets this small (docs/benchmarks.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from campaign import DataError
from models import losses, parallel
from models.encode import Encoded, Tensors
from models.forward import unpack
from models.linear import base
from models.network import UpliftNet
from models.spec import FitSpec

Progress = Callable[[int, int], None]  # (steps done, steps in all)

MAX_WEIGHT = 50.0  # of a row: bounds what one rare arm's row can do
STEPS_PER_EPOCH = 20  # at least, by smaller batches, for small frames
SMALLEST_BATCH = 256
WEIGHT_DECAY = 1.0
DECAY_STEPS = 200  # longer trainings decay less per step, so that the whole training decays as much
WARM_UP = 0.1  # share of the steps
BLOCK_ROWS = 65_536  # of `blocks`, shuffled together


class TrainingRows(NamedTuple):
    """What the loop reads, all of n rows: outcomes standardised, propensity of the arm taken, fold of the unit."""

    inputs: Encoded
    arm: np.ndarray
    outcome: np.ndarray
    propensity: np.ndarray
    fold: np.ndarray


Blocks = Callable[[np.random.Generator], Iterable[TrainingRows]]


def optimise(
    rows: TrainingRows,
    start: Tensors,
    spec: FitSpec,
    progress: Progress | None = None,
    blocks: Blocks | None = None,
    n: int | None = None,
) -> Tensors:
    """Train the ensemble; returns its weights under the names `models.forward` reads.

    Args:
        rows: the training rows, encoded; with `blocks`, a sample of them.
        start: rule tensors; with weights among them the training continues from those.
        spec: arms, outcomes, schedule, seed.
        progress: called after every step.
        blocks: gives the rows of one epoch block by block, for data that does not fit in memory.
        n: rows of an epoch of `blocks`.

    Raises: DataError: `blocks` gives another number of rows than `n`.
    """
    rng = np.random.default_rng(spec.seed)
    binary = [o.kind == "binary" for o in spec.outcomes]
    n = n or len(rows.arm)
    counts = np.bincount(rows.arm, minlength=len(spec.arms)) * (n / len(rows.arm))
    average = rows.outcome.mean(axis=0, dtype=np.float64)
    with one_thread():
        net = _network(rows, start, base(rows.outcome, rows.arm, len(spec.arms), binary), rng)
        loss = _loss(net, counts, average, binary, start)
        batch = int(np.clip(n // STEPS_PER_EPOCH, SMALLEST_BATCH, spec.batch_rows))
        steps = spec.epochs * math.ceil(n / batch)
        stepper = _optimiser(net, spec, steps)
        epochs = (block for _ in range(spec.epochs) for block in (whole(blocks(rng), batch) if blocks else [rows]))
        parts = (part for block in epochs for part in shuffled(block, batch, len(spec.arms), spec.members, start, rng))
        done = 0
        for done, part in enumerate(parts, start=1):
            stepper(loss(*part))
            if progress is not None:
                progress(done, steps)
        if done != steps:
            raise DataError(
                f"{done} steps of {batch} rows were taken, {steps} were planned for {n} rows and {spec.epochs} epochs; "
                "the data changed while it was read: train again"
            )
        return net.tensors()


def whole(blocks: Iterable[TrainingRows], batch: int) -> Iterator[TrainingRows]:
    """Blocks joined and cut to whole batches, about BLOCK_ROWS rows each; only the last is shorter.

    So an epoch takes the steps that were planned, however its rows come: each short batch would be a step too many, and
    the schedule, at rate 0 once its steps are over, would learn nothing from the rows that are left.
    """
    size = max(batch, BLOCK_ROWS // batch * batch)
    held: list[TrainingRows] = []
    n = 0
    for block in blocks:
        held.append(block)
        n += len(block.arm)
        if n >= size:
            rows = _joined(held)
            for first in range(0, n - size + 1, size):
                yield _cut(rows, first, first + size)
            held, n = [_cut(rows, n - n % size, n)], n % size
    if n:
        yield _joined(held)


def _joined(blocks: Sequence[TrainingRows]) -> TrainingRows:
    inputs = Encoded(*map(np.concatenate, zip(*(block.inputs for block in blocks), strict=True)))
    return TrainingRows(inputs, *map(np.concatenate, zip(*(block[1:] for block in blocks), strict=True)))


def _cut(rows: TrainingRows, first: int, end: int) -> TrainingRows:
    return TrainingRows(Encoded(*(part[first:end] for part in rows.inputs)), *(part[first:end] for part in rows[1:]))


def _network(rows: TrainingRows, start: Tensors, bias: np.ndarray, rng: np.random.Generator) -> UpliftNet:
    """Everybody average, or with the weights that `start` has."""
    net = UpliftNet(rows.inputs.dense.shape[1], start["rules.mask"], _shares(rows.inputs.rules, start), bias, rng)
    if "head.weight" in start:
        net.load(start)
    return net


def shuffled(
    rows: TrainingRows, batch: int, n_arms: int, members: int, start: Tensors, rng: np.random.Generator
) -> Iterator[tuple[Tensor, ...]]:
    """One epoch of (dense, rules, arm, outcome, member weights): permuted once, then contiguous slices."""
    order = rng.permutation(len(rows.arm))
    dense, bits = rows.inputs.dense[order], rows.inputs.rules[order]
    arm, outcome = torch.from_numpy(rows.arm[order]), torch.from_numpy(rows.outcome[order])
    weight = np.minimum(1 / (n_arms * rows.propensity[order]), MAX_WEIGHT)
    others = rows.fold[order] != np.arange(members)[:, None]  # member k learns from every fold but k
    weights = torch.from_numpy((others * weight * members / (members - 1)).astype(np.float32))
    for i in range(0, len(order), batch):
        part = parallel.own(i, min(i + batch, len(order)))
        rules = torch.from_numpy(unpack(bits[part], start))
        yield torch.from_numpy(dense[part]), rules, arm[part], outcome[part], weights[:, part]


def _loss(
    net: UpliftNet, counts: np.ndarray, average: np.ndarray, binary: Sequence[bool], start: Tensors
) -> Callable[..., Tensor]:
    """The loss of one batch, its constants worked out once."""
    rows = losses.effective_rows(counts)
    scale = torch.tensor(np.where(binary, 1 / np.maximum(_entropy(average), 0.01), 0.5), dtype=torch.float32)
    strength = np.where(start["rules.interaction"], losses.L1_RULES, losses.L1_SKIP)
    rule_strength = torch.tensor(strength, dtype=torch.float32)[:, None, None]
    l1, spread = 1 / math.sqrt(rows), losses.SPREAD * min(max(1e4 / rows, 0.02), 30)

    def loss(dense: Tensor, rules: Tensor, arm: Tensor, outcome: Tensor, weight: Tensor) -> Tensor:
        logits = net(dense, rules)
        share, mean = parallel.share_and_mean(logits)
        fit = losses.factual_loss(logits, arm, outcome, weight, scale, binary)
        brakes = spread * losses.spread_penalty(logits, mean) + l1 * losses.sparsity_penalty(net, rule_strength)
        return share * (fit + brakes)

    return loss


def _optimiser(net: UpliftNet, spec: FitSpec, steps: int) -> Callable[[Tensor], None]:
    """One AdamW step per call: linear warm-up, then cosine to zero; weight decay on weights only."""
    decay = WEIGHT_DECAY * min(1, DECAY_STEPS / steps)
    groups = [
        {"params": net.decayed(), "weight_decay": decay},
        {"params": net.biases(), "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=spec.learning_rate, fused=True)
    warm = max(WARM_UP * steps, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda i: min((i + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(i / steps, 1))))
    )

    def step(loss: Tensor) -> None:
        adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        parallel.add_gradients([*net.decayed(), *net.biases()])
        adam.step()
        schedule.step()

    return step


def _shares(bits: np.ndarray, start: Tensors) -> np.ndarray:
    """Share of rows where each rule holds, from at most about 100k evenly spaced rows."""
    return np.asarray(unpack(bits[:: max(1, len(bits) // 100_000)], start).mean(axis=0))


def _entropy(average: np.ndarray) -> np.ndarray:
    share = np.clip(average, 1e-9, 1 - 1e-9)
    return np.asarray(-(share * np.log(share) + (1 - share) * np.log(1 - share)))


@contextmanager
def one_thread() -> Iterator[None]:
    """Train on one thread: on small nets a second one only waits, and sums would depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
