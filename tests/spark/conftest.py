"""One Spark for all tests here, on a machine that is not in UTC."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

for folder in ("feature_repo", "bentos", "monitoring", "models"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))

RULES = (
    "ignore::DeprecationWarning",
    "ignore::ResourceWarning",
    "ignore:On demand feature view:RuntimeWarning",
    "ignore::pydantic.warnings.PydanticDeprecatedSince20",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for rule in RULES:
                item.add_marker(pytest.mark.filterwarnings(rule))


def pytest_ignore_collect() -> bool | None:
    """PySpark is in an environment of its own, and needs Java."""
    try:
        import pyspark  # noqa: F401
    except ImportError:
        return True
    return None if shutil.which("java") or os.environ.get("JAVA_HOME") else True


@pytest.fixture(scope="session", autouse=True)
def _another_zone() -> Iterator[None]:
    """Java and Python read the zone when they start."""
    from feature_repo import spark

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        # a JVM that lives for a minute is faster with its first compiler alone
        options = "--driver-memory 1g --driver-java-options -XX:TieredStopAtLevel=1 pyspark-shell"
        patch.setenv("PYSPARK_SUBMIT_ARGS", options)
        time.tzset()
        yield
        spark.session().stop()
    time.tzset()


_BUILD = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
import serving_world
serving_world.DAYS = 80  # 20 days of decisions mature
serving_world.build(Path(sys.argv[2]), 400, False)
"""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small platform with matured decisions, snapshots, an applied store and a champion; this process lives in it."""
    from bentoml._internal.configuration.containers import BentoMLContainer
    from serving_world import NOW, world_env

    folder = tmp_path_factory.mktemp("a world")
    words = [sys.executable, "-c", _BUILD, str(Path(__file__).parents[1] / "bentos"), str(folder)]
    done = subprocess.run(words, env=world_env(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TACTFUL_DATA", str(folder / "data"))
        patch.setenv("TACTFUL_FEATURE_REPO", str(folder / "repo"))
        patch.setenv("TACTFUL_NOW", NOW.isoformat())
        BentoMLContainer.bentoml_home.set(str(folder / "bentoml"))
        yield folder
        BentoMLContainer.bentoml_home.reset()
