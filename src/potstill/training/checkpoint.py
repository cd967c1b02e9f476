"""Checkpoints of training: safetensors and JSON, written whole, verified when read, never pickled.

    checkpoints/step-00000123/{model,optimizer,...}.safetensors, state.json, manifest.json

A checkpoint is built in a hidden folder, its manifest last, flushed to the disk and renamed.
Reading checks every file's hash, so a flipped bit costs the newest checkpoint and not the run.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from potstill.storage.files import read_json, sync, write_json, writing
from potstill.storage.manifest import manifest, verify_manifest

_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY = ".checkpoint-"


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write folder/step-NNNNNNNN and drop all but the `keep` newest.

    Checkpoints of later steps are dropped too: training that writes step 10 after step 20 started
    from scratch or from an earlier state, and must not resume from what it left behind.

    Args:
        tensors: group -> name -> tensor of any device; each group is one file. Tied tensors are
            written once for each of their names.
        state: JSON values; NaN and infinities are refused.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: The disk is full or can't be written; older checkpoints are untouched.
        ValueError: `state` holds NaN or an infinity.
    """
    assert step >= 0, f"step {step} is negative"
    assert keep >= 1, "keep must be at least 1"
    assert not {"step", "groups"} & set(state), "step and groups are the checkpoint's own keys"
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
    try:
        for group, named in tensors.items():
            path = temporary / f"{group}.safetensors"
            with writing(path):
                save_file(_separate(named), path)
            sync(path)
        write_json(temporary / "state.json", {"step": step, "groups": list(tensors), **state})
        write_json(temporary / "manifest.json", manifest(temporary))
        target = folder / f"step-{step:08d}"
        if target.exists():
            os.rename(target, temporary / "replaced")
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(target / "replaced", ignore_errors=True)
    sync(folder)
    _prune(folder, step, keep)
    return target


def load_checkpoint(
    folder: Path, warn: Callable[[str], None] = lambda _: None
) -> tuple[int, dict[str, dict[str, torch.Tensor]], dict[str, Any]] | None:
    """Read the newest whole checkpoint: step, tensors (group -> name -> CPU tensor) and state.

    `warn` gets a sentence for each newer checkpoint that is damaged.

    Returns:
        None where no checkpoint is whole.
    """
    for step, path in sorted(_checkpoints(folder), reverse=True):
        try:
            return _read(step, path)
        except ValueError as error:
            warn(f"{path}: the checkpoint is damaged ({error}). An older one is used.")
    return None


def _separate(named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy to contiguous CPU tensors that share no memory: a safetensors file has no ties."""
    seen: set[int] = set()
    result = {}
    for name, tensor in named.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        if storage in seen:
            tensor = tensor.clone()
        seen.add(storage)
        result[name] = tensor
    return result


def _read(step: int, path: Path) -> tuple[int, dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    files = read_json(path / "manifest.json")
    try:
        bad = verify_manifest(path, files)
    except (AttributeError, KeyError, TypeError):
        raise ValueError("manifest.json is not a manifest") from None
    if bad:
        raise ValueError(f"{bad[0]} is missing or changed")
    if "state.json" not in files:
        raise ValueError("manifest.json lists no state.json")
    state = read_json(path / "state.json")
    groups = state.pop("groups")
    if state.pop("step") != step:
        raise ValueError("state.json is of another step")
    return step, {group: load_file(path / f"{group}.safetensors") for group in groups}, state


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    named = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return [(int(match[1]), path) for match, path in named if match]


def _prune(folder: Path, step: int, keep: int) -> None:
    found = sorted(_checkpoints(folder), reverse=True)
    later = [path for number, path in found if number > step]
    older = [path for number, path in found if number <= step][keep:]
    for path in [*later, *older]:
        shutil.rmtree(path, ignore_errors=True)
