"""Every code block: commands exist with their options, configuration is valid; the slow run executes them all."""

import json
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pandas as pd
import pytest
import typer
import yaml
from pages import blocks, copy_checkout, pages, run_page, words

import pipeline
from campaign import ROOT, Campaign
from feature_repo.log_map import LogMap
from monitoring.experiment.plan import ExperimentPlan

COMMAND = typer.main.get_command(pipeline.app)
# a copied world is not where its registry says; by that one Feast would drop the online tables of the first world
REGISTER = "rm feature_repo/data/registry.db; feast -c feature_repo apply > /dev/null 2>&1"
TABLE = ROOT / "docs" / "how-to" / "table.md"
HOW_TO = sorted({*(ROOT / "docs" / "how-to").glob("*.md")} - {TABLE})
WORLD = "run --users 5000 --days 90 --seed 3"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_parse(page):
    """`tactful` calls name commands and options that exist; toml is a valid campaign or spec; json and yaml parse."""
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.kind == "sh":
            for call in words(block.text):
                parse(call, where)
        elif block.kind == "toml":
            check_toml(tomllib.loads(block.text), where)
        elif block.kind == "json":
            json.loads(block.text)
        elif block.kind == "yaml":
            assert yaml.safe_load(block.text), where
        elif block.kind == "python":
            compile(block.text, where, "exec")
        else:
            assert block.kind == "text", (
                f"{where}: {block.kind} blocks are not checked; use sh, python, toml, json, yaml"
            )


def parse(call, where):
    command = COMMAND
    while hasattr(command, "commands") and call and not call[0].startswith("-"):
        assert call[0] in command.commands, f"{where}: no command {call[0]!r}"
        command, call = command.commands[call[0]], call[1:]
    known = {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    assert {word for word in call if word.startswith("--")} <= known, f"{where}: {call}"


def check_toml(values, where):
    """Sections of campaign.toml in place of the shipped ones are a valid campaign; else it is a SPEC or a PLAN.toml."""
    if "metric" in values:
        ExperimentPlan.model_validate_json(json.dumps(values))
        return
    if "features" in values:
        assert {"arm", "control", "outcome"} <= values.keys(), where
        return
    if values.keys() & LogMap.model_fields.keys():
        LogMap.model_validate_json(json.dumps(values))
        return
    shipped = tomllib.loads((ROOT / "campaign.toml").read_text())
    Campaign.model_validate_json(json.dumps(shipped | values))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A checkout in which `tactful run` has been run; copied for every page."""
    root = copy_checkout(tmp_path_factory.mktemp("world"))
    environ = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(root),
        "BENTOML_HOME": str(root / "bentoml"),
        "HOME": str(root),
    }
    command = [sys.executable, "-m", "pipeline", *WORLD.split()]
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_tutorial_runs_from_a_fresh_checkout(tmp_path):
    printed = run_page(ROOT / "docs" / "tutorial.md", copy_checkout(tmp_path))
    assert '"reason": "unknown_user"' in printed
    assert "What moved the score" in printed
    assert "exit code" in printed
    assert "planned for subscription=0.03, and no change of retention, listening" in printed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_table_page_runs_on_an_experiment_of_its_shape(tmp_path):
    """The columns that its spec.toml names, 2,000 rows drawn at random; its `sh` block as it stands."""
    (spec,) = [block.text for block in blocks(TABLE) if block.kind == "toml"]
    (tmp_path / "spec.toml").write_text(spec)
    rng, n = np.random.default_rng(5), 2000
    frame = pd.DataFrame(
        {
            "recency": rng.integers(1, 13, n),
            "history": rng.gamma(2, 100, n),
            "channel": rng.choice(["Web", "Phone"], n),
            "segment": rng.choice(["No E-Mail", "E-Mail"], n),
        }
    )
    frame["visit"] = (rng.random(n) < 0.1 + 0.1 * (frame["segment"] == "E-Mail") * (frame["recency"] < 6)).astype(int)
    frame.to_csv(tmp_path / "experiment.csv", index=False)
    frame.drop(columns=["segment", "visit"]).to_csv(tmp_path / "customers.csv", index=False)
    assert "E-Mail" in run_page(TABLE, tmp_path)
    scored = pd.read_parquet(tmp_path / "scored.parquet")
    assert len(scored) == n
    assert {"uplift_E-Mail_visit", "best_arm"} <= set(scored.columns)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_readme_runs(world, tmp_path):
    """Every command of it: `make run` on a smaller platform, which is there already; `make test` is what runs this."""
    root = tmp_path / "copy"
    shutil.copytree(world, root, symlinks=True)
    printed = run_page(ROOT / "README.md", root, {"make run ": f"tactful {WORLD} ", "make test ": "true "}, REGISTER)
    assert "uplift policy" in printed
    assert "What moved the score" in printed


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("page", [*HOW_TO, ROOT / "docs" / "logs.md"], ids=lambda page: page.stem)
def test_how_to_page_runs(page, world, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(world, root, symlinks=True)
    run_page(page, root, first=REGISTER)
