import json

import pytest

from campaign import ModelError
from models import registry


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TACTFUL_DATA", str(tmp_path / "data"))

    def make(weights):
        path = tmp_path / f"model-{weights}"
        path.mkdir()
        (path / "model.json").write_text("{}")
        (path / "weights.safetensors").write_text(weights)
        return path

    return make


def test_pack_is_content_addressed_and_idempotent(folder):
    first, other = registry.pack(folder("a")), registry.pack(folder("b"))
    assert first != other
    assert registry.pack(registry.model_path(first)) == first
    assert registry.read_pointer().challenger == first


def test_promote_then_rollback_returns_to_the_former_champion(folder):
    a, b = registry.pack(folder("c")), registry.pack(folder("d"))
    registry.promote(a, "first", at="2026-01-01T00:00:00+00:00")
    registry.promote(b, "better", at="2026-01-08T00:00:00+00:00")
    registry.promote(b, "again", at="2026-01-09T00:00:00+00:00")
    assert registry.read_pointer().previous == (a,)
    assert registry.rollback("worse", at="2026-01-10T00:00:00+00:00").champion == a
    assert registry.champion_tag() == a
    assert [entry["action"] for entry in registry.read_pointer().history] == ["promote", "promote", "rollback"]
    with pytest.raises(ModelError, match="nothing to roll back to"):
        registry.rollback("once more", at="2026-01-11T00:00:00+00:00")


def test_model_path_names_the_changed_file(folder):
    tag = registry.pack(folder("e"))
    (registry.model_path(tag) / "weights.safetensors").write_text("changed")
    with pytest.raises(ModelError, match=r"weights\.safetensors in .* differs from what was packed"):
        registry.promote(tag, "never", at="2026-01-01T00:00:00+00:00")
    assert registry.champion_tag() is None


def test_read_pointer_says_what_to_do_when_torn(folder):
    registry.pack(folder("f"))
    registry.pointer_path().write_text(json.dumps({"champion": "x"})[:9])
    with pytest.raises(ModelError, match="not a champion pointer"):
        registry.read_pointer()


def test_pack_refuses_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"no model\.json"):
        registry.pack(tmp_path)


@pytest.mark.parametrize("tag", ["", "a b c:::", "../../etc:passwd", "t" * 500 + ":1"])
def test_model_path_refuses_what_is_no_tag(tag):
    with pytest.raises(ModelError, match="not a tag"):
        registry.model_path(tag)
