"""What a model's config.json says: its task, its labels, its head."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from potstill.models.families import takes_token_types
from potstill.models.hub import one_sentence, quiet, read_remote_json
from potstill.recipe import ENDINGS, Head, Task
from potstill.storage.model_folders import MODULES
from potstill.storage.onnx_files import folder_of, is_onnx
from potstill.storage.places import local_folder


def load_config(spec: str | os.PathLike[str], revision: str | None = None) -> PretrainedConfig:
    """A model's config.json; `spec` as `load_model`'s.

    Raises:
        ValueError: no such model.
    """
    name = os.fspath(spec)
    place = place_of(name)
    with quiet(), one_sentence(name):
        config: PretrainedConfig = AutoConfig.from_pretrained(
            place, revision=revision, trust_remote_code=False
        )
    return config


def task_of(spec: str | os.PathLike[str]) -> Task:
    """The task that a model serves, by its head; sentence_embedding for one without.

    Args:
        spec: as `load_model`'s.

    Raises:
        ValueError: no such model, or one with the head of another task.
    """
    name = os.fspath(spec)
    path = place_of(name)
    if read_remote_json(path, MODULES, None, name) is not None:
        return Task.SENTENCE_EMBEDDING
    config = read_remote_json(path, "config.json", None, name)
    if not isinstance(config, dict):
        where = "it has no config.json" if Path(path).is_dir() else "it is no folder here"
        also = "" if Path(path).is_dir() else ", and the hub has none or can't be reached"
        raise ValueError(f"{name}: the model can't be loaded: {where}{also}")
    classes = [str(found) for found in config.get("architectures") or []]
    if any(found.endswith(("ForMaskedLM", "ForPreTraining")) for found in classes):
        return Task.MASKED_LM
    if not classes or any("For" not in found for found in classes):
        return Task.SENTENCE_EMBEDDING
    for task in Task:
        ending = ENDINGS.get(task.head) if task.head else None
        if ending and any(found.endswith(ending) for found in classes):
            return _sequence_task(config) if task.head == "sequence" else task
    raise ValueError(f"{name}: {classes[0]} has the head of no task that Potstill knows")


def place_of(name: str) -> str:
    """Return where config.json is read from: a local folder, or the name of a model on the hub."""
    place = os.fspath(folder_of(name)) if is_onnx(name) else name
    return os.fspath(local_folder(place, name) or place)


def _sequence_task(config: dict[str, Any]) -> Task:
    """Which task a sequence head does, as config.json says, or as transformers would guess."""
    said = config.get("problem_type")
    for task in Task:
        if said is not None and task.problem_type == said:
            return task
    labels = config.get("id2label")
    one = labels is not None and len(labels) == 1
    return Task.REGRESSION if one else Task.CLASSIFICATION


# --- details --------------------------------------------------------------------------------------


def inputs_of(config: PretrainedConfig) -> list[str]:
    types = ["token_type_ids"] if takes_token_types(config) else []
    return ["input_ids", *types, "attention_mask"]


def has_head(config: Any, head: Head | None) -> bool:
    """Whether a checkpoint's config says that it has such a head."""
    ending = ENDINGS.get(head) if head else None
    return ending is not None and any(str(n).endswith(ending) for n in config.architectures or [])


def label_names(config: Any) -> list[str]:
    """The labels in the order of the head's outputs."""
    return [str(config.id2label[number]) for number in sorted(config.id2label)]


def is_unnamed(config: Any) -> bool:
    """Whether the labels are transformers' own stopgaps, LABEL_0, LABEL_1 and so on."""
    return label_names(config) == [f"LABEL_{number}" for number in range(config.num_labels)]
