"""Nobody but the command draws bars: DuckDB would, in a process whose main module is no file."""

import subprocess
import sys

import duckdb

from campaign import ROOT
from feature_repo.duck import ample_memory, connect, ran_out_of

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


def test_ran_out_of() -> None:
    spilled = "Out of Memory Error: failed to offload data block of size 32.0 KiB (896.0 KiB/921.5 KiB used)."
    allocated = "Out of Memory Error: could not allocate block of size 256.0 KiB (4.5 MiB/4.7 MiB used)"
    assert ran_out_of(duckdb.OutOfMemoryException(spilled)) == "disk"
    assert ran_out_of(duckdb.OutOfMemoryException(allocated)) == "memory"
    assert ran_out_of(duckdb.IOException('Could not write file "x": No space left on device')) == "disk"
    assert ran_out_of(duckdb.IOException("No files found")) is None
