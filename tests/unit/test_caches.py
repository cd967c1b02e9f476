"""Cache folders; what damage does to one is tested with the corpora and teachers they hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.caches import kept, key_of, read_meta, write_meta


def opened(folder: Path) -> str | None:
    return None if read_meta(folder) is None else (folder / "content.txt").read_text()


def build(folder: Path) -> None:
    (folder / "content.txt").write_text("built")
    write_meta(folder, {"note": 1})


def test_it_is_built_once(tmp_path: Path) -> None:
    folder = tmp_path / "caches" / "key"
    assert kept(folder, build, opened, "cache") == "built"

    def again(_: Path) -> None:
        raise AssertionError("built again")

    assert kept(folder, again, opened, "cache") == "built"
    assert list(folder.parent.iterdir()) == [folder]
    meta = read_meta(folder)
    assert meta is not None
    assert meta["note"] == 1
    assert list(meta["files"]) == ["content.txt"]


def test_what_fails_halfway_leaves_nothing(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        build(folder)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        kept(tmp_path / "key", half, opened, "cache")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"the cache can't be written \(.*\): make room or choose"):
        kept(tmp_path / "file" / "key", build, opened, "cache")


def test_keys() -> None:
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    assert len(key_of(None)) == 32
