"""Which model serves: follows the champion pointer while requests run; a bad new model leaves the old one serving."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bentos import metrics
from bentos.bundle import Bundle, load_bundle
from bentos.experiments import Live
from bentos.features import Reader
from bentos.raw_log import Context, context_of
from campaign import Campaign, CampaignError, ModelError, TactfulError, data_dir
from models.registry import champion_tag, model_path, pointer_path

logger = logging.getLogger("tactful.champion")

NO_EXPERIMENTS = Live()
OpenReader = Callable[[Bundle], Reader]


@dataclass(frozen=True)
class Serving:
    """What answers a request, swapped as one: model, reader of its features, live experiments, and log context."""

    bundle: Bundle | None
    reader: Reader | None
    context: Context
    live: Live = NO_EXPERIMENTS


class Champion:
    """Holds what serves; `follow` is called every half second and does nothing while the pointer stands still.

    Args:
        campaign: what decisions must fit.
        open_reader: checks that a model fits the feature store (ModelError: it does not) and reads its features.
    """

    def __init__(self, campaign: Campaign, open_reader: OpenReader) -> None:
        self.campaign, self.open_reader = campaign, open_reader
        self.serving = Serving(None, None, context_of(campaign, None))
        self.retired: list[Reader] = []  # no longer used by new batches; to be closed by the event loop, later
        self.error: str | None = "no model was loaded yet"
        self._seen: object = None
        self._failed_at: float | None = None

    def follow(self, clock: float, retry_seconds: float = 10.0) -> bool:
        """Load the champion if the pointer changed, or its last load failed a while ago.

        Args:
            clock: monotonic seconds.
            retry_seconds: how long a failed load rests.

        Returns: whether another model serves now.
        """
        stamp = (_stamp(pointer_path()), _folder_stamp(experiments_dir()))
        resting = self._failed_at is None or clock - self._failed_at < retry_seconds
        if stamp == self._seen and resting:
            return False
        self._seen = stamp
        try:
            changed = self._load(champion_tag())
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a new model, the old one serves on
            expected = isinstance(error, TactfulError | OSError)
            self._failed_at, self.error = clock, str(error) if expected else f"the champion is not loaded: {error!r}"
            metrics.SWAPS.labels("failed").inc()
            metrics.PENDING.set(1)
            logger.error("champion not loaded", extra={"error": self.error, "serving": self.tag})
            return False
        self._failed_at, self.error = None, None
        metrics.PENDING.set(0)
        return changed

    @property
    def tag(self) -> str:
        """Tag of the model that serves; empty when there is none."""
        return self.serving.bundle.tag if self.serving.bundle else ""

    def _load(self, tag: str | None) -> bool:
        if tag is None:
            raise ModelError(f"{pointer_path()}: no champion; run `tactful train`, then `tactful promote`")
        old = self.serving
        same = tag == self.tag and old.bundle is not None
        bundle = old.bundle if same and old.bundle else load_bundle(tag, model_path(tag), self.campaign)
        try:
            live, problem = self._experiments(bundle), None
        except TactfulError as error:
            # an experiment's file must not take the champion down: what ran runs on, and nothing new begins
            live, problem = old.live, error
        reader = old.reader if same else self.open_reader(bundle)
        self.serving = Serving(bundle, reader, context_of(self.campaign, bundle, live.salts), live)
        if not same:
            if old.reader is not None:
                self.retired.append(old.reader)
            metrics.SWAPS.labels("loaded").inc()
            metrics.LOADED.set(1)
            metrics.DATA_UNTIL.set(bundle.data_until)
            logger.info("champion loaded", extra={"model": tag})
        if problem is not None:
            raise problem
        return not same

    def _experiments(self, bundle: Bundle) -> Live:
        """Experiments of this campaign that have not ended (CampaignError: one cannot be run with this model)."""
        if not _folder_stamp(experiments_dir()):
            return NO_EXPERIMENTS
        from monitoring.experiment.file import read_experiments

        found = [e for e in read_experiments(experiments_dir()) if e.state != "ended"]
        other = [e.name for e in found if e.campaign_hash != self.campaign.hash]
        if other:
            raise CampaignError(
                f"experiments {other} were designed for another campaign.toml; restore it, or end them "
                f"(`tactful experiment change {other[0]} --state ended`)"
            )
        columns = {column for e in found for v in e.variants for column in v.rule or {}}
        if unknown := columns - {*bundle.numeric, *bundle.strings}:
            raise CampaignError(
                f"a rule asks for {sorted(unknown)}, which {bundle.tag} does not read; end its experiment "
                "(`tactful experiment change NAME --state ended`), or promote a model that reads it"
            )
        return Live(tuple(found), self.campaign.segments.columns)


def experiments_dir() -> Path:
    """Folder of the experiments' files."""
    return data_dir() / "experiments"


def _folder_stamp(folder: Path) -> list[tuple[str, object]]:
    return [(path.name, _stamp(path)) for path in sorted(folder.glob("*.json"))]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file is replaced; None while there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
