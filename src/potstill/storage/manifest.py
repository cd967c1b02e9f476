"""The files of a folder: names, sizes and hashes; everything that is hashed is hashed here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from io import BufferedReader
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from potstill.storage.model_folders import MODEL_FILES
from potstill.storage.onnx_files import folder_of, is_onnx

Manifest = dict[str, dict[str, Any]]


def sha256(content: bytes | Path) -> str:
    """Hash bytes or a file: 64 hex digits, as manifests and fingerprints hold them."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def blake2b(*parts: bytes | memoryview, size: int = 16) -> bytes:
    """Hash parts of a content to `size` bytes, as cache keys, seeds and known texts use them."""
    digest = hashlib.blake2b(digest_size=size)
    for part in parts:
        digest.update(part)
    return digest.digest()


def file_blake2b(stream: BufferedReader) -> str:
    """Hash a file as caches list it: 32 hex digits."""
    return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def manifest(folder: Path, paths: Iterable[Path] | None = None) -> Manifest:
    """List files below a folder (None: all), sorted: relative path -> its "bytes" and "sha256"."""
    found = folder.rglob("*") if paths is None else paths
    files = sorted((path.relative_to(folder).as_posix(), path) for path in found if path.is_file())
    return {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in files}


def model_manifest(folder: Path) -> Manifest:
    """List the files that loading a model reads: configs, weights, tokenizer, modules.

    A model card beside them, or a whole project around them, changes no model. For an .onnx file
    in a model folder, its own files are listed, too.
    """
    if is_onnx(folder):
        graph, folder = folder, folder_of(folder)
        weights = graph.parent.glob(f"{graph.name}*")
        return model_manifest(folder) | manifest(folder, (path.absolute() for path in weights))
    found = chain(folder.glob("*"), folder.glob("*/*"))
    return manifest(folder, (path for path in found if path.suffix in MODEL_FILES))


def model_part(files: Manifest, folder: str) -> Manifest:
    """Select the `model_manifest` of a folder, or an .onnx file, from that of an outer folder."""

    def below(base: str, start: str) -> Manifest:
        return {
            name.removeprefix(f"{base}/"): entry
            for name, entry in files.items()
            if name.startswith(start)
        }

    if is_onnx(folder):
        parent = PurePosixPath(folder).parent.parent.as_posix()
        return model_part(files, parent) | below(parent, folder)
    return {
        name: entry
        for name, entry in below(folder, f"{folder}/").items()
        if name.count("/") <= 1 and Path(name).suffix in MODEL_FILES
    }


def verify_manifest(folder: Path, expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """List names of the manifest's files that are missing or differ; other files are ignored."""
    return [name for name, entry in expected.items() if not _matches(folder / name, entry)]


def manifest_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Hash a manifest with SHA-256, independent of the order of its entries."""
    lines = [f"{name}\0{entry['bytes']}\0{entry['sha256']}\n" for name, entry in files.items()]
    return sha256("".join(sorted(lines)).encode())


def _matches(path: Path, entry: Mapping[str, Any]) -> bool:
    try:
        return bool(path.stat().st_size == entry["bytes"] and sha256(path) == entry["sha256"])
    except OSError:
        return False
