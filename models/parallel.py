"""One training on several processes: each takes its share of every batch, and gradients are added up (torchrun, gloo).

    torchrun --nproc-per-node 2 -m models.parallel JOB.json

trains on the Parquet files that the job names and writes the model folder; `tactful train --processes 2` does that.
In one process nothing here has an effect.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from campaign import ModelError
from models.decision_log import Outcome
from models.forward import NumpyModel
from models.spec import FitSpec


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own(start: int, stop: int) -> slice:
    """This process's rows of a batch; all of them where there are fewer rows than processes."""
    ranks = _ranks()
    if ranks == 1 or stop - start < ranks:
        return slice(start, stop)
    return slice(start + dist.get_rank(), stop, ranks)


def share_and_mean(values: Tensor) -> tuple[float, Tensor | None]:
    """This process's share of a batch's rows, and the mean over all of them; 1.0 and None in one process.

    Args:
        values: (members, n, ...), of its own rows.
    """
    if _ranks() == 1:
        return 1.0, None
    n = values.shape[1]
    total = torch.cat([values.detach().sum(dim=1).flatten(), torch.tensor([float(n)])])
    dist.all_reduce(total)
    mean = (total[:-1] / total[-1]).reshape(values.shape[0], 1, *values.shape[2:])
    return n / float(total[-1]), mean


def add_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by the sum of all processes'."""
    if _ranks() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, summed in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def fit_parallel(files: Sequence[Path], spec: FitSpec, processes: int) -> NumpyModel:
    """`models.stream.fit_parquet` in several processes of this machine (ModelError: one of them fails)."""
    with TemporaryDirectory() as scratch:
        job, out = Path(scratch) / "job.json", Path(scratch) / "model"
        plain = asdict(replace(spec, outcomes=spec.targets))
        job.write_text(json.dumps({"files": [str(file) for file in files], "spec": plain, "out": str(out)}))
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        done = subprocess.run([*torchrun, "-m", __name__, str(job)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ModelError(f"training in {processes} processes failed; nothing is written: {_reason(done.stderr)}")
        return NumpyModel.load(out)


def _reason(stderr: str) -> str:
    """Our own error, which torchrun follows with a long account of its own; else the end of that."""
    ours = [line.partition("Error: ")[2] for line in stderr.splitlines() if "campaign." in line and "Error: " in line]
    return ours[0] if ours else stderr[-2000:]


def main(job: Path) -> None:
    """What each process does; the first writes the model."""
    from models.stream import fit_parquet
    from models.train import write_model

    asked = json.loads(job.read_text(encoding="utf-8"))
    told: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in asked["spec"].items()}
    spec = FitSpec(**told | {"outcomes": tuple(Outcome(**outcome) for outcome in told["outcomes"])})
    dist.init_process_group("gloo")
    try:
        model = fit_parquet(asked["files"], spec)
        if dist.get_rank() == 0:
            out = Path(asked["out"])
            out.mkdir(parents=True)
            write_model(out, model.spec, model.tensors)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
