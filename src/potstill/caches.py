"""Cache folders: built aside, renamed when complete, checked when they are opened."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_META = "meta.json"


def kept(
    folder: Path,
    build: Callable[[Path], None],
    opened: Callable[[Path], T | None],
    what: str,
) -> T:
    """What a cache folder holds, built first where it isn't there or not as it was written.

    Several processes may do this at once: the first to finish wins.

    Args:
        build: fills an empty folder.
        opened: what a folder holds; None where it isn't there or damaged.
        what: the cache, for messages.

    Raises:
        ValueError: the folder can't be written.
    """
    found = opened(folder)
    if found is not None:
        return found
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


def read_meta(folder: Path) -> dict[str, Any] | None:
    """A folder's meta.json; None if it isn't there or the folder not as it was written."""
    try:
        content = json.loads((folder / _META).read_text(encoding="utf-8"))
        meta: dict[str, Any] = content["meta"]
        if content["checksum"] != key_of(meta):
            return None
        for name, (size, checksum) in meta["files"].items():
            path = folder / name
            if path.stat().st_size != size or _checksum(path) != checksum:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta


def _checksum(path: Path) -> str | None:
    """Of all but token files, which may be huge: of those the size is checked."""
    if path.suffix == ".bin":
        return None
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _publish(building: Path, folder: Path, opened: Callable[[Path], T | None]) -> T:
    """Rename a finished cache to its place, or take the one that another process put there."""
    while True:
        try:
            building.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            found = opened(folder)
            if found is not None:
                return found
            # Damaged. Moved first, so that the place is free at once.
            damaged = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
            with suppress(FileNotFoundError):  # another process was quicker
                folder.rename(damaged)
            shutil.rmtree(damaged, ignore_errors=True)
        else:
            found = opened(folder)
            assert found is not None, "a cache that was just written does not open"
            return found
