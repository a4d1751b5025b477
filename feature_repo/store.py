"""Opening the feature store, and the schema of a feature service: the input contract of a model."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from glob import glob
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import typeguard

from campaign import StoreError, data_dir
from feature_repo.duck import ran_out_of

if TYPE_CHECKING:
    from feast import FeatureStore

REPO = Path(__file__).resolve().parent
READ_BACK = 200  # users read back after materializing


@dataclass(frozen=True)
class FeatureSchema:
    """The input contract of a model.

    `types` is "numeric" or "string" for each name; `views` the feature view of each name that belongs to a user
    (features of the request have none); `ttl_days` how old each of those may be.
    """

    service: str
    names: tuple[str, ...]
    types: dict[str, str]
    views: dict[str, str]
    ttl_days: dict[str, float]

    @property
    def hash(self) -> str:
        """16 hex digits over names, order, types and expiry; stored with every model and decision."""
        values = [self.service, list(self.names), self.types, self.views, self.ttl_days]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def open_store(repo_path: Path | str | None = None) -> FeatureStore:
    """Open the feature store of a repository (default: this one).

    $TACTFUL_STORE names another profile: "redis" reads feature_store.redis.yaml.

    Raises:
        StoreError: there is no such profile, or nothing has been applied yet.
    """
    import_feast()
    from feast import FeatureStore

    repo = Path(repo_path or os.environ.get("TACTFUL_FEATURE_REPO") or REPO)
    profile = os.environ.get("TACTFUL_STORE", "local")
    file = repo / ("feature_store.yaml" if profile == "local" else f"feature_store.{profile}.yaml")
    if not file.exists():
        names = [path.name.split(".")[1].replace("yaml", "local") for path in repo.glob("feature_store*.yaml")]
        raise StoreError(
            f"{file}: no such profile; TACTFUL_STORE == {profile!r}, set it to one of {', '.join(sorted(names))}"
        )
    store = FeatureStore(repo_path=str(repo), fs_yaml_file=file)
    applied = source_path(store)
    # Feast looks for -f from the folder the command runs in, not from -c
    advice = f"run `feast -c {repo}{'' if profile == 'local' else f' -f {file}'} apply`"
    if not applied:
        raise StoreError(f"{file}: nothing is applied yet; {advice}")
    if Path(applied).parents[1] != data_dir() / "features":
        raise StoreError(f"{file}: applied for {applied}, but data is now in {data_dir()}; {advice} again")
    return store


def apply() -> None:
    """What `feast apply` does, by that very command, for the profile in use (StoreError: it fails)."""
    profile = os.environ.get("TACTFUL_STORE", "local")
    chosen = [] if profile == "local" else ["-f", str(REPO / f"feature_store.{profile}.yaml")]
    command = [str(Path(sys.executable).parent / "feast"), "-c", str(REPO), *chosen, "apply"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StoreError(f"`feast apply` failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def definitions_hash() -> str:
    """16 hex digits over the Python and YAML files of this repository."""
    files = sorted([*REPO.glob("*.py"), *REPO.glob("*.yaml")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def import_feast() -> None:
    """Import Feast in 2.5 s of CPU instead of 5.6: without the argument checks that typeguard compiles into it.

    Feast asks typeguard to rewrite about 40 classes and functions; where Feast was imported before, nothing changes.
    """
    if "feast" in sys.modules:
        return
    unchecked = mock.patch.object(typeguard, "typechecked", lambda target=None, **_: target or (lambda other: other))
    with unchecked:
        importlib.import_module("feast")


def source_path(store: FeatureStore) -> str:
    """Where the applied definitions read the snapshots, a pattern of files; empty when nothing is applied."""
    return next((str(getattr(s, "path", "")) for s in store.list_data_sources() if s.name == "snapshots"), "")


def feature_schema(store: FeatureStore, service: str = "uplift_v1") -> FeatureSchema:
    """Names, types and expiry of a feature service, in the order of its definition.

    Raises:
        StoreError: there is no such service.
    """
    services = {s.name: s for s in store.list_feature_services()}
    if service not in services:
        found = ", ".join(sorted(services))
        raise StoreError(f"no feature service {service!r}; found {found}; run `feast -c {REPO} apply`")
    ttls = {view.name: view.ttl for view in store.list_feature_views() if view.ttl}
    types, views, ttl_days = {}, {}, {}
    for projection in services[service].feature_view_projections:
        for field in projection.features:
            types[field.name] = "string" if str(field.dtype) == "String" else "numeric"
            if projection.name in ttls:
                views[field.name] = projection.name
                ttl_days[field.name] = ttls[projection.name] / timedelta(days=1)
    return FeatureSchema(service, tuple(types), types, views, ttl_days)


def newest_snapshot(features: Path) -> date:
    """Day of the newest snapshot in the folder of features (StoreError: there is none)."""
    found = features.glob("date=*/snapshot.parquet")
    days = [date.fromisoformat(path.parent.name.removeprefix("date=")) for path in found]
    if not days:
        raise StoreError(f"{features}: no snapshots; run `tactful features`")
    return max(days)


def users_of(features: Path, day: date) -> list[str]:
    """Users of the snapshot of a day, in order."""
    file = features / f"date={day}" / "snapshot.parquet"
    return sorted(pq.read_table(file, columns=["user_id"]).column(0).to_pylist())


def snapshot_file(store: FeatureStore, day: date, columns: Collection[str] = ()) -> Path:
    """The snapshot of a day.

    Raises:
        StoreError: it has not been built, is not whole, or has not these columns.
    """
    path = Path(source_path(store)).parents[1] / f"date={day}" / "snapshot.parquet"
    if not path.exists():
        raise StoreError(f"{path}: no snapshot of {day}; run `tactful features`")
    _check_file(str(path), columns)
    return path


@contextmanager
def reading(pattern: str, columns: Collection[str], setting: str) -> Iterator[None]:
    """Turn what DuckDB and Ibis say of Parquet files that they cannot read into a StoreError.

    Args:
        pattern: of the files.
        columns: that every one of them must have.
        setting: of feature_store.yaml, that has the `memory_limit`.
    """
    import duckdb
    from ibis.common.exceptions import IbisError

    try:
        yield
    except (duckdb.Error, IbisError) as error:
        reason, short = str(error).splitlines()[0], ran_out_of(error)
        if short is None:
            _check_files(pattern, columns)
        advice = {
            "memory": f"raise memory_limit of {setting} in feature_store.yaml, and run it again",
            "disk": f"make room where DuckDB spills ({gettempdir()}), and run it again",
        }.get(short or "", f"if it is one of the files, {_ANEW}")
        raise StoreError(f"{pattern} cannot be read: {reason}; {advice}") from None


def parquet_columns(file: str) -> list[str]:
    """Names of the columns of a Parquet file (StoreError: it is none, or not a whole one)."""
    try:
        names: list[str] = pq.read_schema(file).names
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise StoreError(f"{file}: not a whole Parquet file ({reason}); {_ANEW}") from None
    return names


_ANEW = "remove its folder, and run `tactful features`, which builds that day again"


def _check_files(pattern: str, columns: Collection[str]) -> None:
    files = sorted(glob(pattern))
    if not files:
        raise StoreError(f"{pattern}: no such file; run `tactful features`, then this again")
    for file in files:
        _check_file(file, columns)


def _check_file(file: str, columns: Collection[str]) -> None:
    found = parquet_columns(file)
    missing = [name for name in columns if name not in found]
    if missing:
        raise StoreError(f"{file}: columns {missing} are missing; it has {found}; {_ANEW}")


def materialize(store: FeatureStore, day: date) -> int:
    """Copy the snapshot of a day into the online store, and read some of it back.

    Does what `feast materialize-incremental DAY` does, but reads that day alone: every user has a row in it.

    Returns:
        Number of users in the snapshot.

    Raises:
        StoreError: there is no such snapshot, or the online store does not give it back.
    """
    with pq.ParquetFile(snapshot_file(store, day)) as file:
        users: int = file.metadata.num_rows
        first = next(file.iter_batches(READ_BACK, columns=["user_id"])).column(0).to_pylist()
    midnight = datetime.combine(day, time(), UTC)
    # Every user has a row in every snapshot: the newest day alone is the newest value of all.
    with answering():
        store.materialize(midnight, midnight)
        _read_back(store, first, day)
    return users


@contextmanager
def answering() -> Iterator[None]:
    """Turn whatever an online store says when it fails into a StoreError."""
    from feast.errors import FeastError
    from redis.exceptions import RedisError

    try:
        yield
    # ValueError: Feast refuses to read a view while it is being materialized.
    except (RedisError, sqlite3.Error, FeastError, ValueError, OSError) as error:
        advice = f"start it, or delete {REPO / 'data'} and run `feast -c feature_repo apply` again"
        raise StoreError(f"online store does not answer: {type(error).__name__}: {error}; {advice}") from error


def _read_back(store: FeatureStore, user_ids: list[str], day: date) -> None:
    """Feast's engines can fail and report success, so the values are read again: their event time, in seconds."""
    expected = int(datetime.combine(day, time(), UTC).timestamp())
    for view in store.list_feature_views():
        name = view.features[0].name
        answer = store.get_online_features([f"{view.name}:{name}"], {"user_id": user_ids}).to_dict(True)
        missing = [u for u, t in zip(user_ids, answer[f"{name}__ts"], strict=True) if t < expected]
        if missing:
            raise StoreError(
                f"online store: {len(missing)} of {len(user_ids)} users lack {view.name} of {day} after materializing, "
                f"for example {missing[0]!r}; run `tactful features` again, and look at the online store's own log"
            )
