"""How fast the training loop is, and that a hundred million rows stream through it in bounded memory.

    python benchmarks/training.py          # speed, then streaming; writes its section of docs/benchmarks.md
    python benchmarks/training.py speed

Speed is measured on the plain network (40 inputs, trunk 64-32, 2 arms, 3 outcomes): rows per CPU-second of
DataLoaders over single rows, of shuffled contiguous slices with a fused optimiser as in models/optimise.py, and of the
bare matrix products of forward and backward. Beside it the loop that ships, `models.optimise.optimise`, whose network
has five members, a skip and penalties: rows times members per CPU-second.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.decision_log import Outcome
from models.encode import Encoded
from models.optimise import TrainingRows, one_thread, optimise
from models.spec import FitSpec
from models.stream import fit_parquet

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
INPUTS, BATCH, SLICE_BATCH = 40, 1024, 4096
ROUNDS = 7
LAYERS = ((INPUTS, 64), (64, 32), (32, 6))


def plain_network() -> nn.Sequential:
    """Trunk 64-32 ReLU, a linear head of 2 arms x 3 outcomes."""
    return nn.Sequential(nn.Linear(INPUTS, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 6))


def step(net: nn.Module, adam: torch.optim.Optimizer, x: Tensor, arm: Tensor, y: Tensor) -> None:
    """One factual step."""
    index = arm.view(-1, 1, 1).expand(-1, 1, 3)
    taken = net(x).view(-1, 2, 3).gather(1, index).squeeze(1)
    binary = nn.functional.binary_cross_entropy_with_logits(taken[:, :2], y[:, :2])
    loss = binary + nn.functional.mse_loss(taken[:, 2], y[:, 2])
    adam.zero_grad(set_to_none=True)
    loss.backward()
    adam.step()


def data(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, arms and outcomes of n rows."""
    rng = np.random.default_rng(0)
    y = np.column_stack([rng.random(n) < 0.1, rng.random(n) < 0.8, rng.normal(size=n)]).astype(np.float32)
    x = rng.normal(size=(n, INPUTS)).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(rng.integers(0, 2, n)), torch.from_numpy(y)


class FrameRows(torch.utils.data.Dataset):
    """Single rows of a pandas frame, as many tutorials read them."""

    def __init__(self, x: Tensor, arm: Tensor, y: Tensor) -> None:
        self.frame = pd.DataFrame(np.column_stack([x.numpy(), arm.numpy(), y.numpy()]))

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        row = self.frame.iloc[i].to_numpy(dtype=np.float32)
        return torch.tensor(row[:INPUTS]), torch.tensor(int(row[INPUTS])), torch.tensor(row[INPUTS + 1 :])


class ArrayRows(torch.utils.data.Dataset):
    """Single rows of numpy arrays."""

    def __init__(self, x: Tensor, arm: Tensor, y: Tensor) -> None:
        self.x, self.arm, self.y = x.numpy(), arm.numpy(), y.numpy()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int, Tensor]:
        return torch.from_numpy(self.x[i]), int(self.arm[i]), torch.from_numpy(self.y[i])


LOADERS: dict[str, Callable[..., torch.utils.data.Dataset]] = {
    "rows of a pandas frame": FrameRows,
    "rows of numpy arrays": ArrayRows,
    "TensorDataset": torch.utils.data.TensorDataset,
}


def loader_rate(rows: Callable[..., torch.utils.data.Dataset], n: int) -> float:
    """Rows per CPU-second of a DataLoader that collates single rows."""
    dataset, net = rows(*data(n)), plain_network()
    adam = torch.optim.AdamW(net.parameters())
    start = time.process_time()
    for part in torch.utils.data.DataLoader(dataset, batch_size=BATCH, shuffle=True):
        step(net, adam, *part)
    return n / (time.process_time() - start)


def slices_rate(n: int) -> float:
    """Rows per CPU-second of one permutation per epoch, contiguous slices, fused AdamW."""
    x, arm, y = data(n)
    net = plain_network()
    adam = torch.optim.AdamW(net.parameters(), fused=True)
    start = time.process_time()
    order = torch.randperm(n)
    x, arm, y = x[order], arm[order], y[order]
    for i in range(0, n, SLICE_BATCH):
        part = slice(i, i + SLICE_BATCH)
        step(net, adam, x[part], arm[part], y[part])
    return n / (time.process_time() - start)


def shipped_rate(n: int, members: int = 5) -> float:
    """Rows times members per CPU-second of the loop that ships, without rules."""
    x, arm, y = data(n)
    kinds = ("binary", "binary", "continuous")
    outcomes = tuple(Outcome(f"y{j}", kind, 1.0) for j, kind in enumerate(kinds))  # type: ignore[arg-type]
    names = dict.fromkeys((f"x{i}" for i in range(INPUTS)), "numeric")
    spec = FitSpec(names, ("none", "message"), outcomes, members=members, rules=0, epochs=1, batch_rows=SLICE_BATCH)  # type: ignore[arg-type]
    none = {"rules.mask": np.ones((members, 0)), "rules.interaction": np.zeros(0), "rules.count": np.zeros(1, int)}
    inputs = Encoded(x.numpy(), np.zeros((n, 0), dtype=np.uint8))
    rows = TrainingRows(inputs, arm.numpy(), y.numpy(), np.full(n, 0.5), np.arange(n) % members)
    start = time.process_time()
    optimise(rows, none, spec)
    return n * members / (time.process_time() - start)


def floor_rate(steps: int) -> float:
    """Rows per CPU-second of the matrix products alone: forward, weight gradients, input gradients past layer one."""
    shapes = [(torch.randn(SLICE_BATCH, a), torch.randn(a, b), torch.randn(SLICE_BATCH, b)) for a, b in LAYERS]
    start = time.process_time()
    for _ in range(steps):
        for i, (x, weight, gradient) in enumerate(shapes):
            x @ weight
            x.T @ gradient
            if i:
                gradient @ weight.T
    return steps * SLICE_BATCH / (time.process_time() - start)


def speed() -> str:
    """Medians of interleaved rounds, as a table."""
    torch.manual_seed(0)
    with one_thread():
        rounds = [
            (
                *(loader_rate(rows, 50_000) for rows in LOADERS.values()),
                slices_rate(400_000),
                shipped_rate(100_000),
                floor_rate(200),
            )
            for _ in range(ROUNDS)
        ]
    *loaders, ours, shipped, floor = np.median(rounds, axis=0)
    lines = [
        "| loop | thousand rows per CPU-second | shuffled slices are | share of the matmul floor |",
        "|---|---|---|---|",
    ]
    for name, rate in zip(LOADERS, loaders, strict=True):
        what = f"DataLoader, {name}, batch {BATCH}"
        lines.append(f"| {what} | {rate / 1e3:.1f} | {ours / rate:.1f} times as fast | {rate / floor:.1%} |")
    lines += [
        f"| shuffled slices, batch {SLICE_BATCH} | {ours / 1e3:.0f} | | {ours / floor:.0%} |",
        f"| `models.optimise`, 5 members, batch {SLICE_BATCH}, rows x members | {shipped / 1e3:.0f} | | "
        f"{shipped / floor:.0%} |",
        f"| matrix products alone | {floor / 1e3:.0f} | | 100% |",
    ]
    fastest = max(loaders)
    told = (
        f"(Medians of {ROUNDS} rounds, torch {torch.__version__}, one thread. The target, 18 times a DataLoader over "
        f"single rows, was set on rows of a pandas frame; 18 times the fastest of the loaders would be "
        f"{18 * fastest / floor:.0%} of the matmul floor.)"
    )
    return "\n".join([*lines, "", told])


def stream(n: int = 100_000_000, chunk: int = 500_000) -> str:
    """Write n rows of Parquet, train one epoch on them, say what it cost."""
    names = [f"x{i}" for i in range(12)]
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for i in range(n // chunk):
            x, arm = rng.normal(size=(chunk, len(names))).astype(np.float32), rng.integers(0, 2, chunk)
            visit = rng.random(chunk) < 0.2 + 0.05 * arm * np.tanh(x[:, 0])
            files.append(Path(folder) / f"{i}.parquet")
            pd.DataFrame(x, columns=names).assign(arm=arm, visit=visit).to_parquet(files[-1], row_group_size=chunk)
        spec = FitSpec(
            dict.fromkeys(names, "numeric"),
            ("none", "message"),
            (Outcome("visit", "binary", 1.0),),
            members=2,
            rules=0,
            epochs=1,
            batch_rows=8192,
        )
        start = time.process_time()
        model = fit_parquet(files, spec)
        spent = time.process_time() - start
    x = {name: rng.normal(size=5000) for name in names}
    mu_hat = model.predict(x)
    correlation = np.corrcoef(mu_hat[:, 1, 0] - mu_hat[:, 0, 0], np.tanh(x["x0"]))[0, 1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return (
        f"{n:,} rows x {len(names)} features from Parquet, one epoch, two members: {spent:.0f} CPU-s, peak memory "
        f"{peak:.2f} GiB (writing the files included), correlation of predicted and true uplift {correlation:.2f}."
    )


def main() -> None:
    """Run the parts named on the command line (default: both) and write the page's section."""
    names = sys.argv[1:] or ["speed", "stream"]
    body = "\n\n".join({"speed": speed, "stream": stream}[name]() for name in names)
    print(body)
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Benchmarks\n"
    before, _, rest = page.partition("<!-- training -->")
    after = rest.partition("<!-- /training -->")[2]
    made = f"`python benchmarks/training.py`, {datetime.now(tz=UTC):%Y-%m-%d}."
    section = f"<!-- training -->\n## Training loop\n\n{made}\n\n{body}\n<!-- /training -->"
    PAGE.write_text(f"{before.rstrip()}\n\n{section}\n\n{after.lstrip()}", encoding="utf-8")


if __name__ == "__main__":
    main()
