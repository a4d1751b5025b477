"""Model registry: folders live in the BentoML model store, the champion is named by one small JSON file.

A tag is `tactful:<hash of the content>`: packing the same folder twice gives the same tag and one entry.
BentoML's labels cannot change after creation, so who is champion is ours to keep: written atomically, history kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from campaign import ModelError, data_dir
from feature_repo.atomic import write_json

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")  # telemetry is on by default

MODEL_NAME = "tactful"


@dataclass(frozen=True)
class Pointer:
    """Who serves: tags of the champion, of the newest challenger, and of former champions (latest last)."""

    champion: str | None = None
    challenger: str | None = None
    previous: tuple[str, ...] = ()
    history: tuple[dict[str, Any], ...] = field(default=())


def pointer_path() -> Path:
    """The champion pointer's file; the service follows it."""
    return data_dir() / "registry" / "champion.json"


def read_pointer() -> Pointer:
    """The pointer as it stands; an empty one when nothing was ever packed (ModelError: not readable)."""
    path = pointer_path()
    if not path.exists():
        return Pointer()
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Pointer(raw["champion"], raw["challenger"], tuple(raw["previous"]), tuple(raw["history"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: not a champion pointer ({error!r}); restore it, or remove it and run `tactful promote TAG`"
        ) from None


def champion_tag() -> str | None:
    """Tag of the model that serves, or None before the first promotion."""
    return read_pointer().champion


def required_champion() -> str:
    """Tag of the model that serves (ModelError: nothing was ever promoted)."""
    tag = champion_tag()
    if tag is None:
        raise ModelError("no champion; run `tactful train`, then `tactful promote` (--force overrules the gate)")
    return tag


def content_hash(folder: Path) -> str:
    """12 hex digits over names and bytes of the folder's files (BentoML's own model.yaml left out)."""
    return hashlib.sha256(json.dumps(file_hashes(folder), sort_keys=True).encode()).hexdigest()[:12]


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of each file of a model folder, by name; BentoML's own model.yaml is left out."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != "model.yaml")
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def pack(folder: Path, *, set_challenger: bool = True) -> str:
    """Copy a model folder into the BentoML model store; returns its tag. Idempotent.

    Raises: ModelError: the folder has no model.json.
    """
    import bentoml

    if not (folder / "model.json").exists():
        raise ModelError(
            f"{folder}: no model.json; expected a model folder written by `tactful train` or `tactful fit`"
        )
    hashes = file_hashes(folder)
    tag = f"{MODEL_NAME}:{content_hash(folder)}"
    if tag not in {str(model.tag) for model in bentoml.models.list()}:
        with bentoml.models.create(tag, module="safetensors", metadata={"sha256": hashes}) as model:
            for name in hashes:
                shutil.copyfile(folder / name, model.path_of(name))
    if set_challenger:
        with _locked():
            old = read_pointer()
            if tag not in (old.champion, old.challenger):
                _write(Pointer(old.champion, tag, old.previous, old.history))
    return tag


def model_path(tag: str) -> Path:
    """Folder of a packed model, its files verified against the hashes stored at packing.

    Raises: ModelError: not in the store, or a file is missing or changed.
    """
    import bentoml
    from bentoml.exceptions import BentoMLException, NotFound

    try:
        model = bentoml.models.get(tag)
    except NotFound:
        raise ModelError(f"{tag}: not in the BentoML model store; `bentoml models list` shows what is") from None
    except (BentoMLException, ValueError) as error:
        raise ModelError(
            f"{tag!r}: not a tag, must be {MODEL_NAME}:HASH ({error}); see `bentoml models list`"
        ) from None
    folder = Path(model.path)
    found, expected = file_hashes(folder), _stored_hashes(model.info.metadata)
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong or not expected:
        raise ModelError(
            f"{tag}: {', '.join(wrong) or 'metadata'} in {folder} differs from what was packed; train again"
        )
    return folder


def _stored_hashes(metadata: Any) -> dict[str, str]:
    found: dict[str, str] = metadata.get("sha256", {})
    return dict(found)


def promote(tag: str, reason: str, *, at: str) -> Pointer:
    """Make `tag` the champion. Idempotent: promoting the champion changes nothing.

    Args:
        tag: a packed model; it is verified first.
        reason: why, in a sentence; kept in the history.
        at: ISO timestamp of the promotion, from the caller's clock.
    """
    model_path(tag)
    with _locked():
        old = read_pointer()
        if old.champion == tag:
            return old
        previous = (*old.previous, old.champion) if old.champion else old.previous
        challenger = None if old.challenger == tag else old.challenger
        return _write(Pointer(tag, challenger, previous, (*old.history, _entry("promote", tag, reason, at))))


def rollback(reason: str, *, at: str) -> Pointer:
    """Make the champion before this one the champion again.

    Raises: ModelError: there was none.
    """
    with _locked():
        old = read_pointer()
        if not old.previous:
            raise ModelError(
                f"nothing to roll back to: {old.champion or 'no champion'} has no predecessor; `bentoml models list` "
                "shows other models, `tactful promote TAG --force` takes one"
            )
        *earlier, tag = old.previous
        model_path(tag)
        return _write(Pointer(tag, old.challenger, tuple(earlier), (*old.history, _entry("rollback", tag, reason, at))))


def _entry(action: str, tag: str, reason: str, at: str) -> dict[str, Any]:
    return {"action": action, "tag": tag, "reason": reason, "at": at}


def _write(pointer: Pointer) -> Pointer:
    write_json(pointer_path(), {"schema": 1, **asdict(pointer)})
    return pointer


@contextmanager
def _locked() -> Iterator[None]:
    """One writer of the pointer at a time, on this machine; released by the system if the process dies."""
    path = pointer_path().parent / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
