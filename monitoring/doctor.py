"""Is everything in place? One finding for each part, in the order of the chain, with the command that mends it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from campaign import ROOT, Campaign, ModelError, StoreError, TactfulError, data_dir, load_campaign
from feature_repo.contracts import LOGS
from feature_repo.freshness import fill, too_old
from feature_repo.log_files import log_days, log_files
from feature_repo.log_map import load_log_map
from feature_repo.own_logs import own_files
from feature_repo.store import feature_schema, newest_snapshot, open_store, snapshot_file
from models.registry import model_path, read_pointer

Verdict = Literal["ok", "look", "mend"]
LOW_DISK_GB = 1.0


@dataclass(frozen=True)
class Finding:
    """What was found in one part; `fix` is empty where nothing is to be done.

    `verdict`: "ok"; "look": works, but see for yourself; "mend": what comes after it in the chain cannot work.
    """

    part: str
    verdict: Verdict
    found: str
    fix: str = ""

    def line(self) -> str:
        """For a terminal."""
        fixes = "".join(f"\n{'':20} -> {line}" for line in self.fix.splitlines())
        return f"{self.verdict:<5} {self.part:<14} {self.found}{fixes}"


def examine(now: datetime) -> list[Finding]:
    """Look at every part; what raises is a finding too.

    Args:
        now: the clock that decisions are made by.
    """
    findings: list[Finding] = []
    for part, check in CHECKS.items():
        finding = _safely(part, check, now)
        same = [f.part for f in findings if f.verdict != "ok" and (f.found, f.fix) == (finding.found, finding.fix)]
        findings.append(replace(finding, found=f"waits for {same[0]}", fix="") if same else finding)
    return findings


def as_dicts(findings: list[Finding]) -> list[dict[str, Any]]:
    """What a machine reads."""
    return [asdict(finding) for finding in findings]


def _safely(part: str, check: Callable[[datetime], tuple[Verdict, str, str]], now: datetime) -> Finding:
    try:
        return Finding(part, *check(now))
    except TactfulError as error:
        said, _, advice = str(error).partition("; ")
        return Finding(part, "mend", said, advice.replace("`", "").removeprefix("run "))
    except OSError as error:
        return Finding(part, "mend", f"{error.filename}: {error.strerror}", "give access, or free the disk")


def _installation(_: datetime) -> tuple[Verdict, str, str]:
    """Python, and every package of the lock in its version."""
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    if sys.version_info[:2] != (3, 11):
        return "mend", f"{python}; Tactful runs on 3.11", "make .venv PYTHON=python3.11"
    wrong = list(_other_versions(ROOT / "requirements.lock"))
    if wrong:
        return (
            "look",
            f"{python}, {len(wrong)} packages are not those of the lock: {', '.join(wrong[:3])}",
            "make .venv",
        )
    return "ok", f"{python}, packages as in requirements.lock", ""


def _other_versions(lock: Path) -> Iterator[str]:
    if not lock.exists():  # installed from a wheel: its own metadata pinned the versions
        return
    for line in lock.read_text(encoding="utf-8").splitlines():
        name, _, wanted = line.partition("==")
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "none"
        if wanted and found.partition("+")[0] != wanted:
            yield f"{name} {found} instead of {wanted}"


def _campaign(_: datetime) -> tuple[Verdict, str, str]:
    campaign = load_campaign()
    messages = ", ".join(campaign.arm_names[1:])
    return "ok", f"{campaign.name}: control and {messages}; outcomes {', '.join(campaign.outcome_names)}", ""


def _log_map(_: datetime) -> tuple[Verdict, str, str]:
    """The map of your own tables is valid and its files are there."""
    log_map = load_log_map()
    if not log_map.tables:
        return "ok", f"maps nothing: logs are what lies in {data_dir() / 'logs'}", ""
    files = own_files(log_map, load_campaign().arm_names)
    return "ok", f"{len(files)} files of {', '.join(log_map.tables)}; tactful check reads them", ""


def _disk(_: datetime) -> tuple[Verdict, str, str]:
    """The data folder can be written, and has room."""
    folder = data_dir()
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".doctor"
    probe.touch()
    probe.unlink()
    free = shutil.disk_usage(folder).free / 1e9
    if free < LOW_DISK_GB:
        return "mend", f"{folder}: {free:.1f} GB free", "free the disk, or move the data with TACTFUL_DATA"
    return "ok", f"{folder}: {free:.0f} GB free", ""


def _logs(_: datetime) -> tuple[Verdict, str, str]:
    first, last = log_days(data_dir() / "logs", LOGS)
    silent = [log for log in LOGS if not log_files(data_dir() / "logs" / log)]
    bad = sorted((data_dir() / "quarantine").rglob("*.parquet"))
    if "users" in silent:
        return "mend", f"{first} to {last}, but no profiles", f"put {data_dir()}/logs/users/date=*/*.parquet there"
    if bad:
        why = f"read {bad[0]}.txt, mend the file, put it back under {data_dir() / 'logs'}, run tactful features"
        return "look", f"{first} to {last}; {len(bad)} files in quarantine", why
    return "ok", f"{first} to {last}" + (f"; none of {', '.join(silent)}" if silent else ""), ""


def _clock(now: datetime) -> tuple[Verdict, str, str]:
    """Decisions, logs and this machine live in the same time."""
    real, last = datetime.now(UTC), log_days(data_dir() / "logs", LOGS)[1]
    if abs(now - real) > timedelta(hours=1):
        return "look", f"$TACTFUL_NOW says {now:%Y-%m-%d %H:%M} UTC, the machine {real:%Y-%m-%d %H:%M}", ""
    if last > now.date():
        return "mend", f"logs of {last}, but today is {now.date()} (UTC)", "set this machine's clock, or the exporter's"
    behind = (now.date() - last).days
    if behind > 1:
        return "look", f"{now:%Y-%m-%d %H:%M} UTC; the newest logs are {behind} days old", "bring the logs up to date"
    return "ok", f"{now:%Y-%m-%d %H:%M} UTC", ""


def _snapshots(now: datetime) -> tuple[Verdict, str, str]:
    """Up to the newest logs, and young enough to decide with."""
    newest = newest_snapshot(data_dir() / "features")
    possible = min(log_days(data_dir() / "logs", LOGS)[1] + timedelta(days=1), now.date())
    if old := too_old(max(newest, possible), now):
        return "mend", *old
    if newest < possible:
        verdict: Verdict = "mend" if too_old(newest, now) else "look"
        return verdict, f"newest of {newest}; the logs allow {possible}", "tactful features"
    return "ok", f"newest of {newest}", ""


def _features_online(now: datetime) -> tuple[Verdict, str, str]:
    """The online store answers, with the newest snapshot's values in every view."""
    import pyarrow.parquet as pq

    from feature_repo.retrieval import online_features

    newest, store = newest_snapshot(data_dir() / "features"), open_store()
    with pq.ParquetFile(snapshot_file(store, newest)) as file:
        user = next(file.iter_batches(1, columns=["user_id"])).column(0)[0].as_py()
    midnight = datetime(newest.year, newest.month, newest.day, tzinfo=UTC)
    rows = online_features(store, [user], None, None, midnight, feature_schema(store))
    kind = store.config.online_store.type
    if rows.status[0] == "unknown_user":
        return "mend", f"{kind}: empty", fill(newest)
    if rows.status[0] == "stale_features":  # at the snapshot's own midnight nothing that was written is
        return "mend", f"{kind}: some views are empty or expired: decisions answer stale_features", fill(newest)
    day = str(rows.feature_timestamp[0])[:10]
    if day < str(newest):
        verdict: Verdict = "mend" if too_old(date.fromisoformat(day), now) else "look"
        return verdict, f"{kind}: features of {day}, snapshots go to {newest}", fill(newest)
    return "ok", f"{kind}: features of {day}", ""


def _model(_: datetime) -> tuple[Verdict, str, str]:
    """The champion is whole, and was trained for this campaign and these features."""
    pointer = read_pointer()
    if pointer.champion is None:
        fix = "tactful promote" if pointer.challenger else "tactful train, then tactful promote"
        raise ModelError(f"no champion; {fix}")
    folder = model_path(pointer.champion)
    _fits(load_campaign(), folder, pointer.champion)
    return "ok", f"champion {pointer.champion}", ""


def _fits(campaign: Campaign, folder: Path, tag: str) -> None:
    from models.forward import NumpyModel

    spec = NumpyModel.load(folder).spec
    if tuple(spec.arms) != campaign.arm_names or tuple(o.name for o in spec.outcomes) != campaign.outcome_names:
        raise ModelError(f"{tag}: other arms or outcomes than campaign.toml; tactful train, then tactful promote")
    schema = feature_schema(open_store(), str(spec.extra["feature_service"]))
    if schema.hash != spec.extra["feature_schema_hash"]:
        raise StoreError(
            f"{tag}: trained on features {spec.extra['feature_schema_hash']}, the store has {schema.hash}; "
            "feast -c feature_repo apply, or tactful train"
        )


CHECKS: dict[str, Callable[[datetime], tuple[Verdict, str, str]]] = {
    "installation": _installation,
    "campaign.toml": _campaign,
    "logs.toml": _log_map,
    "disk": _disk,
    "logs": _logs,
    "clock": _clock,
    "snapshots": _snapshots,
    "online store": _features_online,
    "model": _model,
}
