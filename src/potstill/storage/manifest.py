"""What is in a folder: names, sizes and hashes. Every file that is hashed is hashed here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from potstill.storage.model_folders import MODEL_FILES
from potstill.storage.onnx_files import folder_of, is_onnx

Manifest = dict[str, dict[str, Any]]


# --- manifests ------------------------------------------------------------------------------------


def manifest(folder: Path) -> Manifest:
    """Relative path -> {"bytes": int, "sha256": str} of every file below a folder, sorted."""
    return manifest_of(folder, folder.rglob("*"))


def model_manifest(folder: Path) -> Manifest:
    """`manifest` of what loading a model reads: configs, weights, tokenizer, modules.

    A model card beside them, or a whole project around them, changes no model.

    Args:
        folder: or an .onnx file, which is read with the model folder that it lies in.
    """
    if is_onnx(folder):
        graph, folder = folder, folder_of(folder)
        weights = graph.parent.glob(f"{graph.name}*")
        return model_manifest(folder) | manifest_of(folder, (path.absolute() for path in weights))
    found = chain(folder.glob("*"), folder.glob("*/*"))
    return manifest_of(folder, (path for path in found if path.suffix in MODEL_FILES))


def model_part(files: Manifest, folder: str) -> Manifest:
    """The `model_manifest` of a folder below the one that `files` are of, or of an .onnx file,
    without reading them.
    """
    if is_onnx(folder):
        parent = PurePosixPath(folder).parent.parent.as_posix()
        weights = {
            name.removeprefix(f"{parent}/"): entry
            for name, entry in files.items()
            if name.startswith(folder)
        }
        return model_part(files, parent) | weights
    below = {
        name.removeprefix(f"{folder}/"): entry
        for name, entry in files.items()
        if name.startswith(f"{folder}/")
    }
    return {
        name: entry
        for name, entry in below.items()
        if name.count("/") <= 1 and Path(name).suffix in MODEL_FILES
    }


def manifest_of(folder: Path, paths: Iterable[Path]) -> Manifest:
    files = sorted((path.relative_to(folder).as_posix(), path) for path in paths if path.is_file())
    return {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in files}


def verify_manifest(folder: Path, expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the manifest's files that are missing or differ; files not listed are ignored."""
    return [name for name, entry in expected.items() if not _matches(folder / name, entry)]


def manifest_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """One sha256 (hex) for a manifest, independent of the order of its entries."""
    lines = [f"{name}\0{entry['bytes']}\0{entry['sha256']}\n" for name, entry in files.items()]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _matches(path: Path, entry: Mapping[str, Any]) -> bool:
    try:
        return bool(path.stat().st_size == entry["bytes"] and _sha256(path) == entry["sha256"])
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
