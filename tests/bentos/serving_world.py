"""Build all the service needs, small: `python build_world.py FOLDER [USERS]` in the environment of `world_env`.

Raw logs, one snapshot per day, an applied and materialized store, two packed models (the first one promoted).
"""

import json
import os
import shutil
import sys
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

END = date(2026, 6, 1)
NOW = datetime.combine(END, time(12), UTC)
DAYS = 31


def world_env(folder: Path, **more: str) -> dict[str, str]:
    """Environment of a process that lives in the world under `folder`."""
    return {
        **os.environ,
        "TACTFUL_DATA": str(folder / "data"),
        "TACTFUL_FEATURE_REPO": str(folder / "repo"),
        "BENTOML_HOME": str(folder / "bentoml"),
        "TACTFUL_NOW": NOW.isoformat(),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONWARNINGS": "ignore",
        **more,
    }


def build(folder: Path, users: int, full: bool) -> None:
    from campaign import data_dir, load_campaign
    from feature_repo.snapshots import build_snapshots
    from simulator import simulate

    campaign = load_campaign()
    if not (data_dir() / "logs").exists():
        simulate(data_dir(), users, DAYS, 3, end=END, messages=campaign.arm_names[1:])
    build_snapshots(data_dir() / "logs", data_dir() / "features", END)
    (folder / "repo" / "data").mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).parents[2] / "feature_repo" / "feature_store.yaml", folder / "repo")
    apply_and_materialize(folder / "repo", "feature_store.yaml")
    pack_models(folder, *((users, {}) if full else (400, {"members": 2, "rules": 20, "epochs": 4})))


def add_redis(folder: Path, port: str) -> None:
    """The same features in a Redis that listens on `port`; the profile is `TACTFUL_STORE=redis`."""
    name = "feature_store.redis.yaml"
    text = (Path(__file__).parents[2] / "feature_repo" / name).read_text()
    (folder / "repo" / name).write_text(text.replace("127.0.0.1:6379", f"127.0.0.1:{port}"))
    apply_and_materialize(folder / "repo", name)


def apply_and_materialize(repo: Path, name: str) -> None:
    from feast import FeatureStore

    from feature_repo import eligibility, entities, on_demand, services, sources, views
    from feature_repo.retrieval import materialize

    store = FeatureStore(repo_path=str(repo), fs_yaml_file=repo / name)
    tables = [v for v in vars(views).values() if type(v).__name__ == "FeatureView"]
    bulk = [eligibility.pushed, eligibility.eligibility]
    store.apply([entities.user, sources.snapshots, *tables, on_demand.request_context, services.uplift_v1, *bulk])
    materialize(store, END)


def pack_models(folder: Path, n: int, size: dict[str, int]) -> None:
    """Two models trained on random arms and outcomes of n users that depend on features; tags in models.json."""
    import numpy as np
    import pandas as pd

    from bentos.bundle import write_probe
    from campaign import load_campaign
    from feature_repo.retrieval import feature_schema, historical_features, open_store
    from models import registry
    from models.spec import FitSpec, columns_of
    from models.train import fit

    campaign, store = load_campaign(), open_store(folder / "repo")
    schema = feature_schema(store)
    users = pd.read_parquet(folder / f"data/features/date={END}/snapshot.parquet")["user_id"][:n]
    rng = np.random.default_rng(0)
    entity = pd.DataFrame({"user_id": users, "event_timestamp": pd.Timestamp(END, tz="UTC")}).reset_index(drop=True)
    entity["hour"], entity["surface"] = rng.integers(0, 24, len(entity)), rng.choice(["home", "search"], len(entity))
    frame = historical_features(store, entity)[list(schema.names)]
    frame["arm"] = rng.integers(0, len(campaign.arm), len(frame))
    push = frame["arm"] * np.where(frame["minutes_28d"].rank(pct=True) > 0.5, 1.0, -1.0)
    for o in campaign.outcome:
        noise = rng.normal(size=len(frame))
        frame[o.name] = (push + noise > 0).astype(float) if o.kind == "binary" else push + noise
    tags = []
    for seed in (1, 2):
        spec = FitSpec(schema.types, campaign.arm_names, campaign.outcome, costs=campaign.costs, seed=seed, **size)
        extra = {
            "campaign_hash": campaign.hash,
            "feature_service": schema.service,
            "feature_schema_hash": schema.hash,
            "policy": {"threshold": 0.0},
            "data_window": {
                "from": f"{END - timedelta(days=DAYS)} 00:00:00+00:00",
                "to": f"{END} 00:00:00+00:00",
                "n": len(frame),
            },
            "metrics": {},
        }
        fitted = fit(frame, spec)
        target = folder / f"model-{seed}"
        fitted.save(target, extra)
        write_probe(target, fitted.model, columns_of(frame, schema.types))
        tags.append(registry.pack(target))
    registry.promote(tags[0], "test", at=NOW.isoformat())
    (folder / "models.json").write_text(json.dumps(tags))
    write_expected(folder, store, schema, users.head(200), tags)


def write_expected(folder: Path, store, schema, users, tags) -> None:
    """What each network says about users on their offline features at NOW, hour 20, surface home: expected.npz."""
    import numpy as np
    import pandas as pd

    from feature_repo.retrieval import historical_features
    from models import registry
    from models.forward import NumpyModel
    from models.spec import columns_of

    entity = pd.DataFrame({"user_id": users, "event_timestamp": pd.Timestamp(NOW), "hour": 20, "surface": "home"})
    columns = columns_of(historical_features(store, entity.reset_index(drop=True)), schema.types)
    mu_hat = [NumpyModel.load(registry.model_path(tag)).predict(columns) for tag in tags]
    arrays = {"users": users.to_numpy(dtype=str), "mu_hat": np.stack(mu_hat)}
    arrays |= {name: column.astype(float) for name, column in columns.items() if schema.types[name] == "numeric"}
    np.savez(folder / "expected.npz", **arrays)


if __name__ == "__main__":
    if sys.argv[2:3] == ["redis"]:
        add_redis(Path(sys.argv[1]), sys.argv[3])
    else:
        build(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 600, sys.argv[3:] == ["full"])
