"""The lock can be installed by the oldest Python 3.11 that distributions still ship (Debian 12: 3.11.2)."""

import tomllib
from importlib.metadata import distribution

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from campaign import ROOT

LOCK = [line for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines() if line]


@pytest.mark.parametrize("line", LOCK)
def test_lock_installs_on_python_3_11_2(line):
    name, _, version = line.partition("==")
    installed = distribution(name)
    assert installed.version.partition("+")[0] == version, f"{name}: run `make .venv`"
    assert SpecifierSet(installed.metadata["Requires-Python"] or "").contains("3.11.2"), installed.metadata[
        "Requires-Python"
    ]


def test_the_extra_spark_is_what_the_lock_of_spark_installs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [Requirement(line) for line in project["optional-dependencies"]["spark"]]
    lock = dict(line.split("==") for line in (ROOT / "requirements-spark.lock").read_text(encoding="utf-8").split())
    assert [requirement.name for requirement in asked] == ["pyspark"]
    assert asked[0].specifier.contains(lock["pyspark"])
    assert set(lock) == {"pyspark", "py4j"}  # and nothing that .venv has in another version
