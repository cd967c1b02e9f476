"""Cache folders; what damage does to one is tested with the corpora and teachers they hold."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.storage import caches
from potstill.storage.caches import Damaged, kept, key_of, read_meta, write_meta


def opened(folder: Path) -> str:
    read_meta(folder)
    return (folder / "content.txt").read_text()


def build(folder: Path) -> None:
    (folder / "content.txt").write_text("built")
    write_meta(folder, {"note": 1})


def silent(message: str) -> None:
    raise AssertionError(message)


def test_it_is_built_once(tmp_path: Path) -> None:
    folder = tmp_path / "caches" / "key"
    assert kept(folder, build, opened, "cache", silent) == "built"

    def again(_: Path) -> None:
        raise AssertionError("built again")

    assert kept(folder, again, opened, "cache", silent) == "built"
    assert list(folder.parent.iterdir()) == [folder]
    meta = read_meta(folder)
    assert meta["note"] == 1
    assert list(meta["files"]) == ["content.txt"]


def test_what_fails_halfway_leaves_nothing(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        build(folder)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        kept(tmp_path / "key", half, opened, "cache", silent)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_one_that_can_not_be_built_again(tmp_path: Path) -> None:
    folder = tmp_path / "key"
    kept(folder, build, opened, "cache", silent)
    (folder / "content.txt").write_text("bulit")

    def gone(_: Path) -> None:
        raise ValueError("no such source")

    said: list[str] = []
    with pytest.raises(ValueError, match=r"^no such source$"):
        kept(folder, gone, opened, "cache", said.append)
    assert said == [f"{folder}: the cache is damaged (content.txt has changed). It is built again."]
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_disk_does_not_give_back(tmp_path: Path) -> None:
    def worn(folder: Path) -> str:
        raise Damaged("content.txt has changed")

    expected = (
        r"key: the cache was written but cannot be read back \(content\.txt has changed\)\. Check"
    )
    with pytest.raises(ValueError, match=expected):
        kept(tmp_path / "key", build, worn, "cache", silent)


def test_a_good_one_that_another_process_put_there_meanwhile_stays(tmp_path: Path) -> None:
    """While the damaged one was read that it has replaced."""
    folder = tmp_path / "key"
    kept(folder, build, opened, "cache", silent)
    (folder / "content.txt").write_text("bulit")
    theirs: list[int] = []
    reads: list[Path] = []

    def overtaken(place: Path) -> str:
        reads.append(place)
        try:
            return opened(place)
        except Damaged:
            if len(reads) == 2:  # when it was built, and its place found taken
                kept(folder, build, opened, "cache", lambda _: None)
                theirs.append(folder.stat().st_ino)
            raise

    assert kept(folder, build, overtaken, "cache", lambda _: None) == "built"
    assert folder.stat().st_ino == theirs[0]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        ValueError, match=r"the cache cannot be written \(.*\)\. Free some disk space or choose"
    ):
        kept(tmp_path / "file" / "key", build, opened, "cache", silent)


# --- damage ---------------------------------------------------------------------------------------


def written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one file of three shards."""
    monkeypatch.setattr(caches, "_SHARD", 4)
    (folder / "ids.bin").write_bytes(b"abcdefghij")
    write_meta(folder, {})
    return folder / "ids.bin"


def change(path: Path, place: int, modified: int | None = None) -> None:
    """Another byte, in place; and the time that the file keeps."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    if modified is not None:
        os.utime(path, ns=(modified, modified))


@pytest.mark.parametrize("place", [0, 3, 4, 7, 9])
def test_damage_in_any_shard_is_found(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, monkeypatch)
    _, shards = read_meta(tmp_path)["files"]["ids.bin"]
    assert len(shards) == 3
    change(path, place)
    with pytest.raises(Damaged, match=r"^ids\.bin has changed$"):
        read_meta(tmp_path)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read for their checksums from now on."""
    computed: Callable[[Path], Any] = caches._computed
    names: list[str] = []

    def counting(path: Path) -> Any:
        names.append(path.name)
        return computed(path)

    monkeypatch.setattr(caches, "_computed", counting)
    return names


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, monkeypatch)
    an_hour_ago = time.time_ns() - 3_600_000_000_000
    os.utime(path, ns=(an_hour_ago, an_hour_ago))
    names = counted(monkeypatch)
    for _ in range(3):
        read_meta(tmp_path)
    assert names == ["ids.bin"]
    change(path, 5)
    with pytest.raises(Damaged, match=r"ids\.bin has changed"):
        read_meta(tmp_path)


def test_a_file_may_change_within_one_tick_of_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time stays the same then, so that of a new file says nothing."""
    path = written(tmp_path, monkeypatch)
    later = time.time_ns() + 3_600_000_000_000  # new, however slow this test is
    os.utime(path, ns=(later, later))
    read_meta(tmp_path)
    change(path, 5, later)
    with pytest.raises(Damaged, match=r"ids\.bin has changed"):
        read_meta(tmp_path)


def test_keys() -> None:
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    assert len(key_of(None)) == 32
