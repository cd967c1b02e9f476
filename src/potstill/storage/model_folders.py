"""Model folders as files: no path and no link leads out of one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

MODEL_FILES = {".json", ".safetensors", ".txt", ".model"}  # endings of what loading a model reads
MODULES = "modules.json"
_INDEXES = "*.index.json"  # of weights in several files


def check_folder(folder: Path, others: Iterable[Path] = ()) -> None:
    """Refuse a model folder of which a path or a link leads somewhere else.

    A link to a file is followed only to a file of the same folder or, in the hub's cache, to one of
    the same repository's blobs. A link to a folder is not followed, but the model folder itself may
    be one. `others` are checked beside the paths that loading a model reads.
    """
    root = Path(os.path.realpath(folder))
    # the hub's cache: snapshots/REVISION/x -> ../../blobs/HASH
    caches = [parent.parent for parent in root.parents if parent.name == "snapshots"]
    inside = [root, *(cache / "blobs" for cache in caches[:1])]
    found = chain(folder.glob("*"), folder.glob("*/*"))
    read = [path for path in found if path.suffix in {*MODEL_FILES, ".jinja"}]
    indexes = {path.relative_to(folder).as_posix() for path in read if path.match(_INDEXES)}
    named = [
        folder / _check_named(folder, file, name)
        for file in ("config.json", "tokenizer_config.json", MODULES, *sorted(indexes))
        for name in _names_in(folder / file)
        if name  # a module without files has an empty path
    ]
    for path in [*read, *named, *others]:
        _check_links(folder, path, inside)


def _check_named(folder: Path, file: str, path: Any) -> str:
    """Check a path, at most one folder deep: manifests look no deeper for what decides a model."""
    name = check_path(os.fspath(folder), file, path)
    if name.count("/") > 1:
        raise ValueError(
            f"{folder}: {file} names the path {path!r}, which lies more than one folder deep. Move "
            "it to the model folder or to a folder in it, and name it there."
        )
    return name


def check_path(model: str, file: str, path: Any) -> str:
    """Return a path that a file of a model folder names, if it lies plainly below the folder."""
    parts = path.split("/") if isinstance(path, str) else [""]
    if any(part in ("", ".", "..") or "\\" in part or not part.isprintable() for part in parts):
        raise ValueError(
            f"{model}: {file} names the path {path!r}, which does not lie plainly below the model "
            "folder. Name a path such as '1_Pooling', without '..', '.', a backslash or a leading "
            "or doubled '/'."
        )
    return str(path)


def _names_in(path: Path) -> list[Any]:
    """List the paths that a file of a model folder names; its reader reports if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if isinstance(content, list):
        return [module.get("path") for module in content if isinstance(module, dict)]
    if not isinstance(content, dict):
        return []
    names: list[Any] = []
    for key in ("configuration_files", "fast_tokenizer_files", "transformers_weights"):
        value = content.get(key) or []
        names += value if isinstance(value, list) else [value]
    shards = content.get("weight_map")
    return [*names, *(dict.fromkeys(shards.values()) if isinstance(shards, dict) else [])]


def _check_links(folder: Path, path: Path, inside: Iterable[Path]) -> None:
    parts = path.relative_to(folder).parts
    for count in range(1, len(parts) + 1):
        step = folder.joinpath(*parts[:count])
        if not step.is_symlink():
            continue
        kind = "folder" if count < len(parts) or step.is_dir() else "file"
        target = Path(os.path.realpath(step))  # which, unlike resolve, bears links in a circle
        if kind == "folder" or not any(target.is_relative_to(place) for place in inside):
            where = " outside of the model folder" if kind == "file" else ""
            raise ValueError(
                f"{folder}: {step.relative_to(folder)} is a link to a {kind}{where}, which is not "
                f"followed. Replace the link by a copy of the {kind}."
            )
