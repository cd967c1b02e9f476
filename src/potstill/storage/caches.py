"""Cache folders: built aside, renamed when complete, checked when they are opened.

Opening a cache reads and hashes all its files, so damage shows before any training. That takes
about 1.4 s per GB with blake2b on one core; sha256 takes half of it where the processor has
instructions for it, and twice as long elsewhere. Each process checks what it opens itself, and
hashes a file again only when the file has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_META = "meta.json"
# Bytes per hash. Part of the format: with another size, every token cache would seem damaged.
# Read in one piece, and slower in larger ones.
_SHARD = 16 << 20
_COARSE = 2_000_000_000  # ns: no file system's times are coarser

Checksum = str | list[str]

CACHE_VARIABLE = "POTSTILL_CACHE"


class Damaged(Exception):
    """A cache folder isn't as it was written; the message says in which file."""


def kept(
    folder: Path,
    build: Callable[[Path], None],
    opened: Callable[[Path], T],
    what: str,
    say: Callable[[str], None],
) -> T:
    """What a cache folder holds, built first where it isn't there or not as it was written.

    Several processes may do this at once: the first to finish wins.

    Args:
        build: fills an empty folder.
        opened: what a folder holds; raises Damaged, as `read_meta` does.
        what: the cache, for messages.
        say: called with a sentence where the folder is damaged.

    Raises:
        ValueError: the folder can't be written, or what was written can't be read back.
    """
    if os.path.exists(folder):  # and complete, since it has this name; Path.exists may raise
        try:
            return opened(folder)
        except Damaged as damage:
            say(f"{folder}: the {what} is damaged ({damage}); rebuilding it")
    # Renamed when it is complete, so that no other process ever sees half of it.
    building = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        building.mkdir(parents=True)
        build(building)
        return _publish(building, folder, opened)
    except OSError as error:  # sources turn theirs into ValueError
        raise ValueError(
            f"{folder.parent}: the {what} can't be written ({error.strerror or error}): make room "
            "or choose another folder"
        ) from None
    except Damaged as damage:
        raise ValueError(
            f"{folder}: the {what} was written and can't be read back ({damage}): check the disk "
            "or choose another folder"
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def key_of(parts: object) -> str:
    """A folder's name for what decides its content: 32 hex digits of a value that JSON can hold."""
    content = json.dumps(parts, sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write a finished folder's meta.json, with the sizes and checksums of its files."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    meta["files"] = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, _checksum(path)]
        for path in files
    }
    content = {"meta": meta, "checksum": key_of(meta)}
    (folder / _META).write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_meta(folder: Path) -> dict[str, Any]:
    """A folder's meta.json, once all files are what it says.

    Raises:
        Damaged: a file is missing or has changed.
    """
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


def _unreadable(name: str, error: OSError) -> Damaged:
    if isinstance(error, FileNotFoundError):
        return Damaged(f"{name} is missing")
    return Damaged(f"{name} can't be read: {error.strerror or error}")


_known: dict[tuple[str, int, int, int, int], Checksum] = {}


def _checksum(path: Path) -> Checksum:
    """A file's checksum, computed once in a process as long as the file is the same."""
    stat = path.stat()
    now = time.time_ns()
    key = os.path.abspath(path), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
    if key in _known:
        return _known[key]
    found = _computed(path)
    # A file that was written just now may be written again without another time.
    if stat.st_mtime_ns < now - _COARSE:
        _known[key] = found
    return found


def _computed(path: Path) -> Checksum:
    """A hash of a file; of a token file, which may be huge, one a shard."""
    with path.open("rb") as stream:
        if path.suffix != ".bin":
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        shards = iter(lambda: stream.read(_SHARD), b"")
        return [hashlib.blake2b(shard, digest_size=16).hexdigest() for shard in shards]


def _publish(building: Path, folder: Path, opened: Callable[[Path], T]) -> T:
    """Rename a finished cache to its place, or take the one that another process put there."""
    while True:
        try:
            building.rename(folder)
        except OSError:
            judged = _inode(folder)
            if judged is None:
                raise
            with suppress(Damaged):
                return opened(folder)
            if _inode(folder) != judged:  # another process has put a good one there meanwhile
                continue
            # Moved first, so that the place is free at once.
            damaged = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
            with suppress(FileNotFoundError):  # another process was quicker
                folder.rename(damaged)
            shutil.rmtree(damaged, ignore_errors=True)
        else:
            return opened(folder)


def _inode(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return None


def cache_folder() -> Path:
    """Where tokenised text is kept between runs: $POTSTILL_CACHE, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "potstill"
    return Path(os.environ.get(CACHE_VARIABLE) or default)
