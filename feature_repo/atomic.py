"""Write files so that a reader sees the old content or the new, never half of it: aside, fsync, rename.

And one process at a time, where two would undo each other's work.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from campaign import StoreError


@contextmanager
def locked(file: Path, message: str) -> Iterator[None]:
    """Hold the lock `file` while the block runs; the system lets go of it when the process dies.

    Raises: StoreError: another process holds it; `message` says what that one does and what to do.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(message) from None
        yield


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` to write to; on success it takes the target's place, on failure it is removed.

    Works for a file and for a folder (an existing folder is moved away first, then removed).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield aside
        for written in (*aside.rglob("*"), aside):
            _fsync(written)
        if target.is_dir():
            if aside.is_file():
                raise IsADirectoryError(errno.EISDIR, "a file cannot take the place of a folder", str(target))
            old = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.old"
            target.rename(old)
            aside.rename(target)
            shutil.rmtree(old)
        else:
            aside.replace(target)
        _fsync(target.parent)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with replacing(target) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Write canonical JSON atomically: sorted keys, indented, no NaN (ValueError)."""
    write_text(target, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
