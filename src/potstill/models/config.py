"""The task, the labels and the head of a model, by its config.json."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

from potstill.models.hub import Repository
from potstill.recipe import ENDINGS, Head, Task
from potstill.storage.model_folders import MODULES


def load_config(spec: str | os.PathLike[str], revision: str | None = None) -> PretrainedConfig:
    """Read a model's config.json; `spec` is as for `load_model`.

    Raises:
        ValueError: There is no such model.
    """
    return Repository.of(spec, revision).config()


def task_of(spec: str | os.PathLike[str]) -> Task:
    """Return the task that a model serves, by its head; sentence_embedding for one without.

    Args:
        spec: The model, as for `load_model`.

    Raises:
        ValueError: There is no such model, or it has the head of another task.
    """
    repository = Repository.of(spec)
    name = repository.name
    if repository.json(MODULES) is not None:
        return Task.SENTENCE_EMBEDDING
    config = repository.json("config.json")
    if not isinstance(config, dict):
        raise ValueError(
            f"{name}: the model cannot be loaded (there is no config.json on this machine, and the "
            "hub has none or cannot be reached). Check the name and the connection."
        )
    classes = [str(found) for found in config.get("architectures") or []]
    if any(found.endswith(("ForMaskedLM", "ForPreTraining")) for found in classes):
        return Task.MASKED_LM
    if not classes or any("For" not in found for found in classes):
        return Task.SENTENCE_EMBEDDING
    for task in Task:
        ending = ENDINGS.get(task.head) if task.head else None
        if ending and any(found.endswith(ending) for found in classes):
            return _sequence_task(config) if task.head == "sequence" else task
    raise ValueError(
        f"{name}: {classes[0]} has the head of an unknown task. Use a model of one of the tasks "
        f"{', '.join(Task)}."
    )


def _sequence_task(config: dict[str, Any]) -> Task:
    """Return the task of a sequence head by config.json, or by transformers' own guess."""
    said = config.get("problem_type")
    for task in Task:
        if said is not None and task.problem_type == said:
            return task
    labels = config.get("id2label")
    one = labels is not None and len(labels) == 1
    return Task.REGRESSION if one else Task.CLASSIFICATION


# --- details --------------------------------------------------------------------------------------


def has_head(config: Any, head: Head | None) -> bool:
    """Return whether a checkpoint's config lists such a head."""
    ending = ENDINGS.get(head) if head else None
    return ending is not None and any(str(n).endswith(ending) for n in config.architectures or [])


def label_names(config: Any) -> list[str]:
    """Return the labels in the order of the head's outputs."""
    return [str(config.id2label[number]) for number in sorted(config.id2label)]


def is_unnamed(labels: Sequence[str]) -> bool:
    """Return whether the labels are transformers' own stopgaps, LABEL_0, LABEL_1 and so on."""
    return list(labels) == [f"LABEL_{number}" for number in range(len(labels))]
