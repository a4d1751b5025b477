"""Environment of every test: a model store of its own, no telemetry, one thread. Set before any library is imported."""

import os
import tempfile
from pathlib import Path

_SCRATCH = tempfile.TemporaryDirectory(prefix="tactful-tests-")
os.environ["BENTOML_HOME"] = str(Path(_SCRATCH.name) / "bentoml")
os.environ["TACTFUL_DATA"] = str(Path(_SCRATCH.name) / "data")  # nothing may write into the checkout
os.environ.update(DO_NOT_TRACK="1", BENTOML_DO_NOT_TRACK="True", OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
os.environ.pop("TACTFUL_CAMPAIGN", None)
os.environ.pop("TACTFUL_NOW", None)

import pytest  # noqa: E402  # after the environment

HILLSTROM = Path(os.environ.get("TACTFUL_HILLSTROM", Path(__file__).parents[2] / "shared" / "data" / "hillstrom.csv"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The whole chain first: it takes longest, and two processes that share the files are done sooner."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.fixture(scope="session")
def hillstrom() -> Path:
    """The Hillstrom experiment's CSV; its tests carry the marker `hillstrom`."""
    if not HILLSTROM.exists():
        pytest.skip(f"{HILLSTROM} is absent; set TACTFUL_HILLSTROM to the Hillstrom experiment's CSV")
    return HILLSTROM
