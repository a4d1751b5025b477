"""Nobody but the command draws bars: DuckDB would, in a process whose main module is no file."""

import subprocess
import sys

from campaign import ROOT
from feature_repo.duck import ample_memory, connect

ASK = """
import duckdb
from feature_repo.duck import ample_memory, connect
asked = "SELECT current_setting('enable_progress_bar'), current_setting('threads')"
print(duckdb.connect().execute(asked).fetchone()[0], *connect(threads=3).execute(asked).fetchone())
"""


def said(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_connect_draws_no_bar_where_duckdb_would():
    assert said(ASK) == ["True", "False", "3"]


def test_ample_memory_is_half_of_the_machine_at_most(monkeypatch):
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    assert ample_memory() == "2147MB"
    pages["SC_PHYS_PAGES"] *= 100
    assert ample_memory() == "4000MB"
    asked = connect(memory_limit=ample_memory()).execute("SELECT current_setting('memory_limit')")
    assert asked.fetchone() == ("3.7 GiB",)
