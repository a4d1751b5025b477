"""The code blocks of README and docs/, and a copy of the checkout to run them in."""

import os
import re
import shutil
import socket
import subprocess
import textwrap
from dataclasses import dataclass

from campaign import ROOT

BLOCK = re.compile(
    r"(?:<!-- needs: (?P<needs>[^>]+) -->\n)?^(?P<indent> *)```(?P<kind>\w+)\n(?P<text>.*?)^ *```$", re.S | re.M
)
FOLDERS = ("bentos", "feature_repo", "models", "monitoring", "rehearsal", "simulator")
FILES = (
    "bentofile.yaml",
    "campaign.py",
    "campaign.toml",
    "logs.toml",
    "pipeline.py",
    "pyproject.toml",
    "requirements.lock",
    "Makefile",
)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, the line it begins on, and the program it needs, if any."""

    kind: str
    text: str
    line: int
    needs: str | None


def pages():
    """README and every page that a person wrote."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page):
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(found["kind"], textwrap.dedent(found["text"]), line, found["needs"])


def run_page(page, root, instead=None, first="", seconds=1800):
    """Run `first`, then a page's `sh` and `python` blocks one after another, as a reader would in one terminal.

    `instead`: words of the page, and those that take their place.
    """
    ports = {default: free_port() for default in ("3000", "6379")}
    script = [f'export PATH="{ROOT}/.venv/bin:$PATH"', first]
    for block in blocks(page):
        if block.kind not in ("sh", "python"):
            continue
        if block.needs and shutil.which(block.needs) is None:
            continue
        # the environment is there already; `make .venv` in a copy must never touch it
        text = block.text.replace("make .venv\n", "").replace('export PATH="$PWD/.venv/bin:$PATH"\n', "")
        for words_, others in (instead or {}).items():
            text = text.replace(words_, others)
        text = re.sub(r"\b(3000|6379)\b", lambda found: str(ports[found[0]]), text)
        script.append(f"echo '--- {page.name}:{block.line}'")
        script.append(text if block.kind == "sh" else f"python - <<'PY'\n{text}PY")
    for profile in root.glob("feature_repo/*.yaml"):
        profile.write_text(profile.read_text().replace("6379", str(ports["6379"])))
    environ = {k: v for k, v in os.environ.items() if k not in ("TACTFUL_DATA", "TACTFUL_NOW")}
    environ |= {
        "PYTHONPATH": str(root),
        "BENTOML_HOME": str(root / "bentoml"),
        "PYTHONWARNINGS": "ignore",
        "COLUMNS": "160",
    }
    file = root / "page.sh"
    file.write_text("set -em\n" + "\n".join(script))
    command = ["bash", str(file)]
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def copy_checkout(root):
    """The sources as they are now."""
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("data", "__pycache__"))
    for file in FILES:
        shutil.copy2(ROOT / file, root / file)
    return root


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def words(command: str) -> list[list[str]]:
    """The `tactful ...` calls of a shell text, each as its words."""
    calls = re.findall(r"(?:^|[;&|(]\s*|\bthen\s+|=\w+\s+)tactful +([^;&|\n#)]*)", command, re.M)
    return [call.replace('"', "").split() for call in calls]
