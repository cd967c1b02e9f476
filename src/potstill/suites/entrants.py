"""Name the models that take part in a suite, and prepare them for fine-tuning."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from potstill.models import load_model, save_model, task_of
from potstill.recipe import Task, Teacher
from potstill.storage.manifest import manifest_digest, model_manifest
from potstill.storage.onnx_files import is_onnx
from potstill.storage.places import model_folder
from potstill.suites.catalog import SuiteTask
from potstill.suites.trials import Entrant

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_GENERIC = {"model", "student", "teacher", "onnx"}  # names of folders that do not identify a model
Folder = str | os.PathLike[str]


def named_models(
    models: Sequence[Folder] | Mapping[str, Folder], baseline: Folder
) -> dict[str, str]:
    """Return name -> place of the model, the baseline's first.

    Args:
        models: Places, each as `name_and_place` reads it, or name -> place.
        baseline: Place of the baseline.

    Raises:
        ValueError: Two models have the same name, or a name has other characters than allowed.
    """
    pairs = [name_and_place(os.fspath(baseline))]
    if isinstance(models, Mapping):
        pairs += [(_checked_name(name), os.fspath(place)) for name, place in models.items()]
    else:
        pairs += [name_and_place(os.fspath(model)) for model in models]
    found: dict[str, str] = {}
    for name, place in pairs:
        if name in found:
            raise ValueError(
                f"models: {found[name]} and {place} would both be named '{name}'. Give one a name, "
                f"as in other={place}."
            )
        found[name] = place
    return found


def name_and_place(spec: str) -> tuple[str, str]:
    """Read `NAME=FOLDER`, or name a folder after itself or its run."""
    name, equals, place = spec.partition("=")
    if equals and not Path(spec).exists():
        return _checked_name(name), place
    parts = [part for part in spec.removeprefix("package:").split("/") if part not in ("", ".")]
    while len(parts) > 1 and parts[-1] in _GENERIC:
        parts.pop()
    own = re.sub(r"[^A-Za-z0-9._-]+", "-", parts[-1] if parts else "model").lstrip("._-")
    return own[:80] or "model", spec


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"models: '{name}' can't name a model. Use letters, digits, '.', '_' and '-'."
        )
    return name


def open_entrants(named: Mapping[str, str], work: Path, notes: list[str]) -> list[Entrant]:
    """Open models for fine-tuning, without the head of a task that they were trained on before.

    Args:
        named: As `named_models` returns them.
        work: Folder for copies without a head.
        notes: Receives a sentence per copy.

    Raises:
        ValueError: A place is not a model folder, or is an .onnx file.
    """
    folders = {name: _folder(name, spec) for name, spec in named.items()}
    return [_entrant(name, folder, work, notes) for name, folder in folders.items()]


def _folder(name: str, spec: str) -> Path:
    if is_onnx(spec):
        raise ValueError(
            f"models: {spec} is an .onnx file, and a suite fine-tunes every model. Name the model "
            "folder that it was exported from."
        )
    return model_folder(name, Teacher(model=spec))


def _entrant(name: str, folder: Path, work: Path, notes: list[str]) -> Entrant:
    digest = manifest_digest(model_manifest(folder))
    task = task_of(folder)
    if task.reads_text:
        return Entrant(name, folder, digest)
    body = work / name / f"body-{digest[:8]}"
    loaded = load_model(folder, Task.SENTENCE_EMBEDDING)
    shutil.rmtree(body, ignore_errors=True)
    save_model(loaded, body)
    notes.append(
        f"{name} was fine-tuned before ({task}); its head is replaced by a new one for each task"
    )
    return Entrant(name, body, digest)


def max_lengths(
    tasks: Sequence[SuiteTask], entrants: Sequence[Entrant], notes: list[str]
) -> dict[str, int]:
    """Return task -> maximum sequence length, the same for all models; weights are not loaded.

    Args:
        tasks: The tasks that are run.
        entrants: The models.
        notes: Receives a sentence if a task's own length is too long for a model.

    Raises:
        ValueError: A model can't be given a task's head.
    """
    found, shortened = {}, []
    for task in tasks:
        labels = list(task.labels) or None
        most = [
            load_model(
                one.body, task.task, untrained_head=True, weights=False, labels=labels
            ).max_length
            for one in entrants
        ]
        found[task.name] = min(task.max_length, *most)
        if found[task.name] < task.max_length:
            shortened.append(f"{task.title} ({found[task.name]} instead of {task.max_length})")
    if shortened:
        notes.append(
            f"inputs are cut at the smallest maximum sequence length of the models: "
            f"{', '.join(shortened)}"
        )
    return found
