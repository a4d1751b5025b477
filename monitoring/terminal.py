"""What the commands share on the terminal: output, progress, errors, one process at a time, steps already done."""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer
from rich.console import Console

from campaign import ROOT, TactfulError, data_dir
from feature_repo.atomic import locked, write_json

if TYPE_CHECKING:
    import pandas as pd

P = ParamSpec("P")
DATE = ["%Y-%m-%d"]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
MACHINE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EISDIR, errno.ENOTDIR}
"""What a full or locked disk says: not a bug."""

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def run_app(app: typer.Typer) -> None:
    """Run the command; an error made on purpose, or by the machine, prints its message, never a traceback."""
    code: int | str | None = 0
    warnings.showwarning = _show_warning
    try:
        app()
    except TactfulError as error:
        code = _fail(str(error))
    except OSError as error:
        if error.errno not in MACHINE:
            raise
        code = _fail(f"{error.filename or data_dir()}: {error.strerror}; make room or give access, then run it again")
    except SystemExit as stop:
        code = stop.code
    # DuckDB's bindings print pages about leaked objects when the interpreter ends in the usual way
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _fail(message: str) -> int:
    err.print(f"error: {message}", style="bold red", markup=False, soft_wrap=True)
    return 3


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
    """Ours as a sentence; those of libraries are not the user's to mend (Feast switches them on for everybody)."""
    ours = Path(filename).is_relative_to(ROOT) and not Path(filename).is_relative_to(sys.prefix)
    if ours and category is UserWarning:
        err.print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)


def alone(command: Callable[P, None]) -> Callable[P, None]:
    """One process at a time in a data folder for this command; the kernel drops the lock of a killed one."""
    name = command.__name__.replace("_", " ")

    @functools.wraps(command)
    def locked_command(*arguments: P.args, **options: P.kwargs) -> None:
        busy = f"another `tactful {name}` is at work in {data_dir()}; wait until it is done, then run this again"
        with locked(data_dir() / "state" / f"{command.__name__}.lock", busy):
            command(*arguments, **options)

    return locked_command


@contextmanager
def step(name: str, **inputs: Any) -> Iterator[bool]:
    """Whether a step must run: not when it was finished with the same inputs. Marked as finished only at its end."""
    stamp = data_dir() / "state" / f"{name.replace(' ', '-')}.json"
    needed = not stamp.exists() or json.loads(stamp.read_text()) != inputs
    if not needed:
        out.print(f"{name}: up to date")
    yield needed
    if needed:
        write_json(stamp, inputs)


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on the terminal's error stream; silent where that is no terminal."""
    from rich.progress import Progress

    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(title)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def busy(title: str) -> Iterator[None]:
    """A sign of life for what takes seconds and cannot be counted; silent where the error stream is no terminal."""
    if not err.is_terminal:
        yield
        return
    with err.status(title):
        yield


def print_frame(table: pd.DataFrame) -> None:
    """A table as text, numbers with four digits."""
    text = table.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="")
    out.print(text, markup=False, soft_wrap=True)


def answer(as_json: bool, value: Any, text: str) -> None:
    """One JSON object for a machine, or the text for a person."""
    if as_json:
        sys.stdout.write(json.dumps(value, default=str) + "\n")
    else:
        out.print(text, markup=False, soft_wrap=True)
