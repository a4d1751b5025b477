"""Your own tables, as logs.toml maps them -> raw logs under data/logs, and the decisions of the time before Tactful.

Each of your files becomes data/<logs/TABLE | decisions>/date=D/own-<hash of its path>_*.parquet. What lies there
follows your files: a new or changed one is converted again (a part that comes out the same is not touched), what came
from one that is gone goes. Nothing is replaced unless every row of every file fits its contract.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from campaign import DataError
from feature_repo.atomic import locked, write_json
from feature_repo.log_map import LogMap, Table, log_map_path
from feature_repo.log_reader import Reading, read_own

PREFIX = "own-"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class OwnFile:
    """One of your files: its table, and what tells this version of it and of its map from the next."""

    table: str
    path: Path
    stamp: tuple[str, int, int]

    @property
    def key(self) -> str:
        """Its name in the state file."""
        return f"{self.table} {self.path}"

    @property
    def stem(self) -> str:
        """How the names of the files made of it begin."""
        return PREFIX + hashlib.sha256(self.key.encode()).hexdigest()[:12]


def own_files(log_map: LogMap, arms: tuple[str, ...]) -> list[OwnFile]:
    """Every file that logs.toml names, in order.

    Raises: DataError: a table has none.
    """
    found = []
    for name, table in log_map.tables.items():
        paths = sorted(path.resolve() for path in _glob(table) if path.is_file())
        if not paths:
            raise DataError(
                f"{log_map_path()}: [{name}] files == {table.files!r}: no such file; put it into "
                f"{log_map_path().parent}, or correct the path there"
            )
        told = log_map.hash_of(name) + (",".join(arms) if name == "decisions" else "")
        found += [OwnFile(name, path, (told, path.stat().st_size, path.stat().st_mtime_ns)) for path in paths]
    return found


def _glob(table: Table) -> Iterator[Path]:
    named = Path(table.files)
    if named.is_absolute():
        return Path(named.anchor).glob(str(named.relative_to(named.anchor)))
    return log_map_path().parent.glob(table.files)


def bring_logs(data: Path, log_map: LogMap, arms: tuple[str, ...], progress: Progress | None = None) -> int:
    """Make data/logs and data/decisions what your tables are now. Idempotent, safe to kill.

    Args:
        data: data folder.
        log_map: a validated logs.toml; without tables nothing is done.
        arms: names of the campaign's arms.
        progress: called with (files done, files to do).

    Returns: number of your files that were converted.
    Raises: DataError: a file or a row does not fit; one line per problem, and nothing was replaced.
    """
    if not log_map.tables:
        return 0
    state = data / "state" / "own_logs.json"
    busy = f"another command is reading your tables into {data}; wait until it is done, then run this again"
    with locked(data / "state" / "own_logs.lock", busy):
        refuse_others(data, log_map)
        files, before = own_files(log_map, arms), _read(state)
        todo = [file for file in files if before.get(file.key) != list(file.stamp)]
        with TemporaryDirectory(dir=state.parent, prefix=".own-") as scratch:
            readings = convert(todo, log_map, arms, Path(scratch), progress)
            problems = [problem for reading in readings for problem in reading.problems]
            if problems:
                raise DataError("\n".join(problems) + "\n`tactful check` says what would be usable all the same")
            for file in todo:
                _replace(Path(scratch), data, file)
        _remove_gone(data, {file.stem for file in files})
        write_json(state, {file.key: list(file.stamp) for file in files})
    return len(todo)


def convert(
    files: list[OwnFile], log_map: LogMap, arms: tuple[str, ...], target: Path, progress: Progress | None = None
) -> list[Reading]:
    """Write each file's usable rows below `target` as they would lie below data/; and what is wrong with the others."""
    readings = []
    for k, file in enumerate(files):
        folder = folder_of(target, file.table)
        folder.mkdir(parents=True, exist_ok=True)
        readings.append(read_own(file.path, file.table, log_map, arms, folder, file.stem))
        if progress is not None:
            progress(k + 1, len(files))
    return readings


def folder_of(data: Path, table: str) -> Path:
    """Where the Parquet files of a table lie."""
    return data / "decisions" if table == "decisions" else data / "logs" / table


def refuse_others(data: Path, log_map: LogMap) -> None:
    """DataError where other logs lie in the place of a mapped table: the two would be added up."""
    if not log_map.tables:
        return
    advice = "move them away, or choose another folder with TACTFUL_DATA"
    if (data / "logs" / "world.json").exists():
        raise DataError(f"{data / 'logs'} holds a simulated world, and {log_map_path()} maps tables of yours; {advice}")
    for name in log_map.tables:
        ours = (PREFIX, "service-") if name == "decisions" else (PREFIX,)
        others = [p for p in sorted(folder_of(data, name).glob("date=*/*.parquet")) if not p.name.startswith(ours)]
        if others:
            raise DataError(f"{others[0]} did not come from {log_map_path()}, which maps [{name}]; {advice}")


def _read(state: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(state.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # none yet, or damaged: converting again is always right
        return {}
    return found


def _replace(scratch: Path, data: Path, file: OwnFile) -> None:
    """Parts of a file into place; one that is the same keeps its time, so that no snapshot is built again for it."""
    made, place = folder_of(scratch, file.table), folder_of(data, file.table)
    names = {part.relative_to(made) for part in made.glob(f"date=*/{file.stem}_*.parquet")}
    for name in sorted(names):
        target = place / name
        if target.exists() and filecmp.cmp(made / name, target, shallow=False):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made / name, target)
    for old in place.glob(f"date=*/{file.stem}_*.parquet"):
        if old.relative_to(place) not in names:
            old.unlink()


def _remove_gone(data: Path, stems: set[str]) -> None:
    for folder in (data / "decisions", *(data / "logs").glob("*")):
        for part in folder.glob(f"date=*/{PREFIX}*.parquet"):
            if part.name.rpartition("_")[0] not in stems:
                part.unlink()
                if not any(part.parent.iterdir()):
                    part.parent.rmdir()
