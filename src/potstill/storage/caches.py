"""Cache folders: built aside, renamed when complete, checked when they are opened.

Opening a cache reads and hashes all its files, so damage shows before any training. That takes
about 1.4 s per GB with blake2b on one core; sha256 takes half of it where the processor has
instructions for it, and twice as long elsewhere. Each process checks what it opens itself, and
hashes a file again only when the file has changed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from potstill.storage.files import write_text
from potstill.storage.manifest import blake2b, file_blake2b

T = TypeVar("T")

_META = "meta.json"
# Bytes per hash. Part of the format: with another size, every token cache would seem damaged.
# Read in one piece, and slower in larger ones.
_SHARD = 16 << 20
_COARSE = 2_000_000_000  # ns: no file system's times are coarser

Checksum = str | list[str]
_known: dict[tuple[str, int, int, int, int], Checksum] = {}


class Damaged(Exception):
    """Report in which file a cache folder is not as it was written."""


def kept(
    folder: Path,
    build: Callable[[Path], None],
    opened: Callable[[Path], T],
    what: str,
    say: Callable[[str], None],
) -> T:
    """Open a cache folder, built first where it is missing or not as it was written.

    Several processes may do this at once: the first to finish wins.

    Args:
        build: Fills an empty folder.
        opened: Returns what a folder holds; raises Damaged, as `read_meta` does.
        what: Names the cache in messages.
        say: Receives a sentence where the folder is damaged.

    Raises:
        ValueError: The folder cannot be written, or cannot be read back.
    """
    if os.path.exists(folder):  # and complete, since it has this name; Path.exists may raise
        try:
            return opened(folder)
        except Damaged as damage:
            say(f"{folder}: the {what} is damaged ({damage}). It is built again.")
    # Renamed when it is complete, so that no other process ever sees half of it.
    building = _beside(folder)
    try:
        building.mkdir(parents=True)
        build(building)
        return _publish(building, folder, opened)
    except OSError as error:  # sources turn theirs into ValueError
        raise ValueError(
            f"{folder.parent}: the {what} cannot be written ({error.strerror or error}). Free some "
            "disk space or choose another folder."
        ) from None
    except Damaged as damage:
        raise ValueError(
            f"{folder}: the {what} was written but cannot be read back ({damage}). Check the disk "
            "or choose another folder."
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def key_of(parts: object) -> str:
    """Name a folder by what decides its content: 32 hex digits of a value that JSON can hold."""
    return blake2b(json.dumps(parts, sort_keys=True).encode()).hex()


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write a finished folder's meta.json, with the sizes and checksums of its files."""
    meta["files"] = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, _checksum(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_text(folder / _META, json.dumps({"meta": meta, "checksum": key_of(meta)}, indent=1))


def read_meta(folder: Path) -> dict[str, Any]:
    """Read a folder's meta.json, and check all files against it; raise Damaged if one differs."""
    try:
        content = json.loads((folder / _META).read_text(encoding="utf-8"))
        meta: dict[str, Any] = content["meta"]
        files: dict[str, tuple[int, Checksum | None]] = meta["files"]
        unchanged = content["checksum"] == key_of(meta)
    except OSError as error:
        raise _unreadable(_META, error) from None
    except (ValueError, KeyError, TypeError):
        unchanged = False
    if not unchanged:
        raise Damaged(f"{_META} has changed")
    for name, (size, checksum) in files.items():
        try:
            same = (folder / name).stat().st_size == size and (
                # Caches of earlier versions have none of token files; corpora checks what they hold
                checksum is None or _checksum(folder / name) == checksum
            )
        except OSError as error:
            raise _unreadable(name, error) from None
        if not same:
            raise Damaged(f"{name} has changed")
    return meta


def cache_folder() -> Path:
    """Locate the cache of tokenized text: $POTSTILL_CACHE, else in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "potstill"
    return Path(os.environ.get("POTSTILL_CACHE") or default)


def _unreadable(name: str, error: OSError) -> Damaged:
    if isinstance(error, FileNotFoundError):
        return Damaged(f"{name} is missing")
    return Damaged(f"{name} cannot be read: {error.strerror or error}")


def _checksum(path: Path) -> Checksum:
    """Compute a file's checksum, once in a process as long as the file is the same."""
    stat, now = path.stat(), time.time_ns()
    key = os.path.abspath(path), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
    if key in _known:
        return _known[key]
    found = _computed(path)
    # A file that was written just now may be written again without another time.
    if stat.st_mtime_ns < now - _COARSE:
        _known[key] = found
    return found


def _computed(path: Path) -> Checksum:
    """Hash a file; a token file, which may be huge, in shards."""
    with path.open("rb") as stream:
        if path.suffix != ".bin":
            return file_blake2b(stream)
        return [blake2b(shard).hex() for shard in iter(lambda: stream.read(_SHARD), b"")]


def _publish(building: Path, folder: Path, opened: Callable[[Path], T]) -> T:
    """Rename a finished cache to its place, or take the one that another process put there."""
    while True:
        try:
            building.rename(folder)
        except OSError:
            if (judged := _inode(folder)) is None:
                raise
            with suppress(Damaged):
                return opened(folder)
            if _inode(folder) != judged:  # another process has put a good one there meanwhile
                continue
            # Moved first, so that the place is free at once.
            damaged = _beside(folder)
            with suppress(FileNotFoundError):  # another process was quicker
                folder.rename(damaged)
            shutil.rmtree(damaged, ignore_errors=True)
        else:
            return opened(folder)


def _beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")


def _inode(folder: Path) -> int | None:
    with suppress(FileNotFoundError):
        return folder.stat().st_ino
    return None
