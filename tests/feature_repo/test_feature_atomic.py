import os

import pytest

from feature_repo.atomic import replacing, write_json, write_text


def test_replacing_keeps_the_old_file_when_writing_fails(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def killed():
        with replacing(target) as aside:
            aside.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        killed()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_replacing_swaps_a_folder_whole(tmp_path):
    target = tmp_path / "model"
    for name in ("first", "second"):
        with replacing(target) as aside:
            (aside / "deep").mkdir(parents=True)
            (aside / "deep" / name).write_text(name)
    assert [p.name for p in (target / "deep").iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [target]


def test_replacing_syncs_what_it_wrote_and_nothing_beside_it(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "large").write_text("not ours")
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(str(path)) or real(path, *rest))
    write_text(tmp_path / "a.txt", "new")
    assert str(tmp_path) in opened
    assert not any("other" in path for path in opened)


def test_replacing_never_puts_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "kept").touch()
    with pytest.raises(IsADirectoryError, match="a file cannot take the place of a folder"):
        write_text(tmp_path / "data", "text")
    assert [p.name for p in tmp_path.rglob("*")] == ["data", "kept"]


def test_write_json_refuses_nan_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []
