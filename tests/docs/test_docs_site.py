"""The site builds without a broken link, loads nothing from elsewhere, and its generated tables are whole."""

import importlib.util
import re
import subprocess
import sys

import pytest

from bentos.settings import Settings
from campaign import ROOT, Campaign
from feature_repo.contracts import DECISIONS, LOGS, REASONS


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """`mkdocs build --strict`, as `make docs` does: a broken link or anchor is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("docs_reference", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_site_loads_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<!-- table:" not in text, page
        loaded = re.findall(
            r'<(?:script|img|iframe)[^>]* src="?(https?:[^" >]+)|<link[^>]*stylesheet[^>]*href="?(https?:[^" >]+)', text
        )
        assert loaded == [], page


def test_reference_names_every_command_key_column_reason_and_setting(reference):
    commands = reference.commands()
    for name in ("tactful run", "tactful explain", "tactful experiment plan", "--json"):
        assert f"`{name}`" in commands
    assert all(command.help for _, command in reference.walk_commands())
    keys = reference.campaign_keys()
    for section in Campaign.model_fields:
        assert section in keys
    for key in ("holdout_share", "segment_margin", "psi_red_line", "max_message_share"):
        assert f"| `{key}` |" in keys
    assert "a loss of retention up to this is tolerated" in keys  # the comment in the file
    mapped = reference.log_map_keys()
    assert all(f"| `{key}` |" in mapped for key in ("timezone", "where", "propensities", "divide_by", "holdout_share"))
    tables = reference.tables()
    for contract in (*LOGS.values(), DECISIONS):
        assert f"## `{contract.name}`" in tables
        assert all(f"| `{column}` |" in tables for column in contract.columns)
    assert all(f"| `{reason}` |" in reference.reasons() for reason in REASONS)
    settings = reference.settings().splitlines()[2:]
    assert len(settings) == len(Settings().__dict__)
    assert all(row.split("|")[2].strip() for row in settings), settings
    assert "| `10` | `monitor`: retrain |" in reference.exit_codes()
    assert "ModelError" in reference.errors()
    assert "`skip_rate_28d`" in reference.features()
    assert "`tactful_decisions`" in reference.metrics()
    assert "`user_ids`" in reference.decide()
