"""What the commands say: their help, and one sentence with its exit code when something is missing or taken."""

import fcntl
import json
import os
import re
import subprocess
import sys

import pytest

from campaign import ROOT


def tactful(folder, *words, **environ):
    """Run the command with its data in `folder`, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *words],
        cwd=ROOT,
        env={
            **os.environ,
            "TACTFUL_DATA": str(folder),
            "BENTOML_HOME": str(folder / "bentoml"),
            "COLUMNS": "80",
            **environ,
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("features", "no logs; expected .*sessions.*/date=YYYY-MM-DD/.*parquet"),
        ("train", "no logs; run `tactful simulate`, or put your own there"),
        ("score", "no champion; run `tactful train`, then `tactful promote`"),
        ("promote", "no challenger to promote; run `tactful train`"),
        ("rollback", "nothing to roll back to"),
        ("retrain", "no weekly decision yet; run `tactful monitor`"),
        ("fit nothing.csv --spec nothing.toml --out model", "nothing.toml: no such file; put it there, or name"),
    ],
)
def test_command_without_its_inputs(tmp_path, words, message):
    done = tactful(tmp_path, *words.split())
    assert done.returncode == 3
    assert re.fullmatch(f"error: .*{message}.*\n", done.stderr), done.stderr
    assert done.stdout == ""


def test_command_does_not_run_twice_at_once(tmp_path):
    (tmp_path / "state").mkdir()
    with (tmp_path / "state" / "simulate.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = tactful(tmp_path, "simulate", "--users", "100")
    assert done.returncode == 3
    assert "another `tactful simulate` is at work in" in done.stderr
    assert not (tmp_path / "logs").exists()
    done = tactful(tmp_path, "simulate", "--users", "100", "--days", "50")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "logs" / "world.json").read_text())["users"] == 100


def test_folder_that_is_a_file_is_no_bug(tmp_path):
    (tmp_path / "data").touch()
    done = tactful(tmp_path / "data", "simulate", BENTOML_HOME=str(tmp_path))
    assert done.returncode == 3
    assert re.fullmatch(
        r"error: .*/data/state: Not a directory; make room or give access, then run it again\n", done.stderr
    )


def test_help_of_every_command():
    from typer.main import get_command

    from pipeline import app

    group = get_command(app)
    assert group.help
    for name, command in group.commands.items():
        sentence = command.get_short_help_str(limit=64)  # what a terminal of 80 columns has room for
        assert not sentence.endswith("..."), f"tactful {name}: {sentence}"
        for option in command.params:
            assert option.help or option.name == "help", f"tactful {name}: {option.name} has no help"


def test_what_takes_long_shows_life_on_a_terminal_only():
    code = "from monitoring.terminal import bar, busy\nwith busy('judging'), bar('reading'): pass"
    command = [sys.executable, "-c", code]
    on_terminal = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])", *command]
    environ = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    quiet, drawn = (
        subprocess.run(c, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        for c in (command, on_terminal)
    )
    assert quiet.stdout + quiet.stderr == ""
    assert "judging" in drawn.stdout
    assert "reading" in drawn.stdout
