from pathlib import Path

import pytest
from simulated_logs import END

from simulator import simulate


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of 12,000 users, 90 days and two messages; tests only read it."""
    root = tmp_path_factory.mktemp("platform")
    simulate(root, 12_000, 90, 11, end=END, messages=["offer", "playlist"])
    return root
