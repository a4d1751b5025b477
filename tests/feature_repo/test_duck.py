"""Nobody but the command draws bars: DuckDB would, in a process whose main module is no file."""

import subprocess
import sys

from campaign import ROOT

ASK = """
import duckdb
from feature_repo.duck import connect
asked = "SELECT current_setting('enable_progress_bar'), current_setting('threads')"
print(duckdb.connect().execute(asked).fetchone()[0], *connect(threads=3).execute(asked).fetchone())
"""


def said(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_connect_draws_no_bar_where_duckdb_would():
    assert said(ASK) == ["True", "False", "3"]
