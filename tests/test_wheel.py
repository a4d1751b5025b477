"""The wheel holds what the library and `tactful fit / predict / evaluate` need, and writes nothing beside itself."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from campaign import ROOT

FOLDERS = ("bentos", "feature_repo", "models", "monitoring", "rehearsal", "simulator")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The wheel, built from a copy of the sources as `pip wheel . --no-deps` does, and unpacked."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("data", "__pycache__"))
    for name in ("campaign.py", "pipeline.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "."]
    done = subprocess.run([*command, "-w", str(folder)], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("tactful-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def tactful(unpacked, where, *words):
    environ = {k: v for k, v in os.environ.items() if not k.startswith("TACTFUL_")} | {"PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-m", "pipeline", *words]
    return subprocess.run(command, cwd=where, env=environ, capture_output=True, text=True, check=False)


def test_wheel_holds_every_file_that_is_not_python(unpacked):
    wanted = {
        path.relative_to(ROOT).as_posix()
        for name in FOLDERS
        for path in (ROOT / name).rglob("*")
        if path.is_file() and not {"data", "__pycache__"} & set(path.relative_to(ROOT).parts)
    }
    assert {"models/templates/style.css", "bentos/templates/ops.html", "feature_repo/feature_store.yaml"} <= wanted
    assert [name for name in sorted(wanted) if not (unpacked / name).exists()] == []


def test_wheel_reads_campaign_and_data_of_the_folder_it_is_used_in(unpacked, tmp_path):
    shutil.copy(ROOT / "campaign.toml", tmp_path)
    told = tactful(unpacked, tmp_path, "doctor")
    assert told.returncode == 3, told.stderr
    assert "ok    campaign.toml" in told.stdout
    assert f"ok    disk           {tmp_path / 'data'}" in told.stdout
    assert not (unpacked / "data").exists()
