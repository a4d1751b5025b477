"""The platform's random phase, before any model: raw logs, decisions and their truth, written in chunks of users.

Everything is written aside, in ROOT/.world, and moved into place when it is whole; logs/world.json comes last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from campaign import DataError
from simulator.draws import Floats, Ints, uniform
from simulator.effects import OUTCOMES, check_messages
from simulator.logs import TIMESTAMP, labels, numbered, write_part, write_table
from simulator.world import Due, World

CHUNK_USERS = 50_000
_ASIDE = ".world"
_PARTS = ("truth", "decisions", "logs")  # logs last: it holds world.json
_KEYS = ("users", "days", "seed", "messages", "holdout_share")

DECISIONS = pa.schema(
    [("decision_id", pa.string()), ("request_id", pa.string()), ("user_id", pa.string()), ("decided_at", TIMESTAMP),
     ("campaign_hash", pa.string()), ("policy_hash", pa.string()), ("model_tag", pa.string()),
     ("feature_service", pa.string()), ("schema_hash", pa.string()), ("features", pa.string()),
     ("feature_timestamp", TIMESTAMP), ("uplift", pa.string()), ("score", pa.float64()), ("threshold", pa.float64()),
     ("layer", pa.string()), ("salts", pa.string()), ("arm", pa.int32()), ("propensity", pa.float64()),
     ("propensities", pa.list_(pa.float64())), ("reason", pa.string()), ("eligible", pa.bool_()), ("hour", pa.int32()),
     ("surface", pa.string()), ("segments", pa.string()), ("experiment", pa.string()), ("cluster_id", pa.string())]
)  # fmt: skip
_EMPTY = ("campaign_hash", "policy_hash", "model_tag", "feature_service", "schema_hash")
TRUTH = pa.schema(
    [("user_id", pa.string()), ("decided_at", TIMESTAMP), ("arm", pa.int32()), *((o, pa.float64()) for o in OUTCOMES)]
)


def simulate(
    root: Path,
    users: int,
    days: int,
    seed: int,
    *,
    end: date,
    messages: Sequence[str],
    holdout_share: float = 0.1,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Write the logs, random decisions and truth of a simulated platform; nothing when they exist already.

    Args:
        root: data folder.
        users: number of users at the end.
        days: length of the world; decisions are taken from day 28 on.
        seed: of every draw.
        end: the world covers [end - days, end): no event and no arrival lies at or after it.
        messages: names of the message arms, 1 to 3.
        holdout_share: share of users never messaged, in [0, 1).
        progress: called with the share done, in (0, 1].

    Returns: what logs/world.json says.

    Raises:
        DataError: arguments out of range, another world in `root`, or data there that no simulation wrote.
    """
    check_messages(tuple(messages))
    if users < 1 or days < 1 or seed < 0 or not 0 <= holdout_share < 1:
        raise DataError(
            f"users == {users}, days == {days}, seed == {seed}, holdout_share == {holdout_share:g}; "
            "expected users and days >= 1, seed >= 0, holdout_share in [0, 1)"
        )
    world = {
        "users": users, "days": days, "seed": seed, "start": str(end - timedelta(days=days)), "end": str(end),
        "messages": list(messages), "holdout_share": holdout_share,
    }  # fmt: skip
    aside = root / _ASIDE
    found = _found(root, world, aside)
    if found is not None:
        return found
    if not _same(_read(aside), world):
        shutil.rmtree(aside, ignore_errors=True)
        for first in range(0, users, CHUNK_USERS):
            size = min(CHUNK_USERS, users - first)
            share = (first / users, size / users)
            part = World(aside, size, days, seed, end=end, messages=messages, first_user=first)
            _run(part, first, days, holdout_share, progress, share)
        os.sync()  # every file on disk before the one that says so
        _write_json(aside / "logs" / "world.json", world)
    world = _read(aside) or world
    for name in _PARTS:
        if (aside / name).exists():
            os.replace(aside / name, root / name)
    shutil.rmtree(aside)
    return world


def _run(
    world: World, first: int, days: int, holdout_share: float,
    progress: Callable[[float], None] | None, share: tuple[float, float],
) -> None:  # fmt: skip
    """Live through one chunk of users, all days, with random arms."""
    for day in range(days):
        random_day(world, first, holdout_share)
        if progress is not None:
            progress(share[0] + share[1] * (day + 1) / days)


def random_day(world: World, first: int, holdout_share: float) -> None:
    """Live through one day with random arms; its decisions and their truth are written beside the logs.

    Args:
        world: on the day.
        first: number of the first user of this chunk.
        holdout_share: share of users never messaged.
    """
    n_arms = len(world.messages) + 1
    propensities = np.full(n_arms, (1 - holdout_share) / n_arms)
    propensities[0] += holdout_share
    due = world.due()
    if len(due.user_ids):
        arms, holdout = random_arms(world, due, holdout_share)
        world.decide(arms)
        _write_decisions(world, first, due, arms, holdout, propensities, holdout_share)
        write_truth(world, first, due)
    world.advance()


def _write_decisions(
    world: World, first: int, due: Due, arms: Ints, holdout: np.ndarray, propensities: Floats, holdout_share: float
) -> None:
    n, k = len(arms), len(propensities)
    ids = pa.array(due.user_ids, pa.string())
    layer = labels(holdout.astype(np.int64), ("exploration", "holdout"))
    salts = labels(np.zeros(n, dtype=np.int64), (json.dumps({"holdout_share": holdout_share}),))
    null = pa.nulls(n)
    columns: dict[str, Any] = {name: labels(np.zeros(n, dtype=np.int64), ("",)) for name in _EMPTY}
    columns |= {
        "decision_id": numbered("d", due.number), "request_id": numbered("r", due.number),
        "user_id": ids, "cluster_id": ids, "decided_at": due.decided_at,
        "features": null, "feature_timestamp": null, "uplift": null, "score": null, "threshold": null, "segments": null,
        "experiment": null,
        "layer": layer, "reason": layer, "salts": salts,
        "arm": arms, "eligible": arms > 0, "propensity": propensities[arms],
        "propensities": pa.array(np.broadcast_to(propensities, (n, k)).tolist()),
        "hour": due.hour, "surface": pa.array(due.surface, pa.string()),
    }  # fmt: skip
    part = f"part-{first:08d}"
    write_part(world.root / "decisions", world.date, part, DECISIONS, columns)


def random_arms(world: World, due: Due, holdout_share: float) -> tuple[Ints, np.ndarray]:
    """A random arm for everybody who is due, control for the holdout; and who is in the holdout."""
    n_arms = len(world.messages) + 1
    holdout = uniform(due.user_key, "holdout") < holdout_share
    return np.where(holdout, 0, (uniform(due.key, "random arm") * n_arms).astype(np.int64)), holdout


def write_truth(world: World, first: int, due: Due) -> None:
    """The true expected outcomes of everybody who is due, under every arm: one row per user and arm."""
    n, k = due.truth.shape[:2]
    ids = pa.array(due.user_ids, pa.string())
    truth = {
        "user_id": ids.take(pa.array(np.repeat(np.arange(n), k))),
        "decided_at": np.repeat(due.decided_at, k),
        "arm": np.tile(np.arange(k), n),
    }
    truth |= {name: due.truth[:, :, i].ravel() for i, name in enumerate(OUTCOMES)}
    write_table(world.root / "truth" / f"{world.date}-part-{first:08d}.parquet", TRUTH, truth)


def _found(root: Path, world: dict[str, Any], aside: Path) -> dict[str, Any] | None:
    """The same world, if it stands in root already; DataError when anything else does."""
    found = _read(root)
    if found is not None and _same(found, world):
        return found
    remedy = f"remove {root} or choose another folder with TACTFUL_DATA"
    if found is not None:
        asked = ", ".join(
            f"{key} {found.get(key)!r} (asked: {world[key]!r})" for key in _KEYS if found.get(key) != world[key]
        )
        raise DataError(f"{root}: another simulated world exists with {asked}; {remedy}")
    left = [name for name in _PARTS if (root / name).exists() and not _same(_read(aside), world)]
    if left:
        raise DataError(
            f"{root}: found {', '.join(left)} without logs/world.json, so not a whole simulated world; {remedy}"
        )
    return None


def _same(found: dict[str, Any] | None, world: dict[str, Any]) -> bool:
    """Whether two worlds agree in all but their dates: `end` is today by default, and a rerun tomorrow is a rerun."""
    return found is not None and all(found.get(key) == world[key] for key in _KEYS)


def _read(root: Path) -> dict[str, Any] | None:
    file = root / "logs" / "world.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def _write_json(file: Path, content: dict[str, Any]) -> None:
    aside = file.with_name(f".{file.name}.aside")
    with aside.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=2)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(aside, file)
