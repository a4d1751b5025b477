"""What `bentoml build` makes: serves alone, from its own files, with the packages it names and no others of ours."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from serving_world import world_env

from bentos import serve
from campaign import ROOT

BUILD = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
NEEDED = set(BUILD["python"]["packages"])
DEPENDENCIES = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
# imported as something else than they are called
MODULES = {"scikit-learn": "sklearn"}

# read by every Python that starts with it on its path: no module of this checkout, none of the packages left out
ALONE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path[:] = [Absent(), *(f for f in sys.meta_path if "editable" not in repr(f).lower())]
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Folder for PYTHONPATH of a process that has only what the bento brings."""
    folder = tmp_path_factory.mktemp("alone")
    left_out = {re.split(r"[<>=\[]", text)[0] for text in DEPENDENCIES - NEEDED}
    # httpx and rich come with BentoML, pandera with nothing
    absent = {MODULES.get(name, name) for name in left_out} - {"httpx", "rich"}
    assert {"torch", "evidently", "lightgbm"} <= absent
    (folder / "sitecustomize.py").write_text(ALONE.format(absent=absent))
    return folder


def test_bento_names_its_packages_as_the_project_does():
    assert NEEDED <= DEPENDENCIES
    assert not any(text.startswith("torch") for text in NEEDED)


def test_bento_includes_all_that_the_service_imports(alone, tmp_path):
    for pattern in BUILD["include"]:
        files = list(ROOT.glob(pattern))
        assert files, f"{pattern} matches nothing"
        for file in files:
            target = tmp_path / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    script = (
        "import sys; sys.path.insert(0, '.')\n"
        "import bentos.service, bentos.ops, bentos.stores, feature_repo.offline, models.explain\n"
        "import monitoring.experiment.assign, monitoring.experiment.file\n"
        "print(*{m.__file__ for n, m in list(sys.modules.items()) if n.split('.')[0] in "
        "('bentos', 'models', 'monitoring', 'feature_repo', 'campaign')}, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(alone)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) > 20
    assert all(Path(file).resolve().is_relative_to(tmp_path) for file in done.stdout.split())


@pytest.mark.slow
def test_bento_serves_on_its_own(world, alone, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(world / "bentoml", home)
    script = Path(sys.executable).parent / "bentoml"
    environ = {**world_env(world, BENTOML_HOME=str(home)), "BENTOML_DO_NOT_TRACK": "True"}
    done = subprocess.run(
        [script, "build", "-o", "tag"], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tag = done.stdout.strip().removeprefix("__tag__:")
    bento = home / "bentos" / tag.replace(":", "/")
    assert not list((bento / "src").rglob("data")), "no data in the image"
    assert "torch" not in (bento / "env" / "python" / "requirements.txt").read_text()
    docker = (bento / "env" / "docker" / "Dockerfile").read_text()
    assert "USER bentoml" in docker
    assert "TACTFUL" not in docker, "settings and tokens come from the environment, never from the image"
    log = tmp_path / "bento.log"
    process, url = serve.start(log, {**environ, "PYTHONPATH": str(alone)}, [tag], tmp_path)
    try:
        serve.wait_until(process, f"{url}/readyz", log)
        users = [str(u) for u in np.load(world / "expected.npz")["users"][:20]]
        answer = httpx.post(
            f"{url}/decide", json={"user_ids": users, "context": {"hour": 20, "surface": "home"}}
        ).json()
    finally:
        serve.stop(process)
    mu_hat = np.load(world / "expected.npz")["mu_hat"][0][:20]
    found = [[list(u.values()) for u in d["uplift"].values()] for d in answer["decisions"]]
    # float32 sums in another order
    np.testing.assert_allclose(found, mu_hat[:, 1:] - mu_hat[:, :1], rtol=0, atol=1e-5)
    assert answer["model"] == json.loads((world / "models.json").read_text())[0]
