"""Small recipes for tests, as mappings, and what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.recipe import RecipeError, shipped_recipes

EMBEDDING = ("teacher=model", "corpus.sources=text.txt")  # what its own recipe leaves open
OF_TASK = ("teacher=model", "data.train=train.tsv")


def left_open(name: str) -> tuple[str, ...]:
    """What a shipped recipe leaves to its user, as overrides."""
    if name in ("embedding", "embedding-compact"):
        return EMBEDDING
    tree = yaml.safe_load(shipped_recipes()[name].read_text(encoding="utf-8"))
    small = ("teachers.small=small",) if name == "classification-two-steps" else ()
    return (*OF_TASK, *small) if "data" in tree else ()


def tree(*stages: dict[str, Any], task: str = "masked_lm", **changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "task": task,
        "teacher": "folder",
        "corpus": {"sources": "text.txt"},
        "stages": list(stages) or [{"kind": "report"}],
        **changes,
    }


def of_encoder(teacher: Path, text: Path, *stages: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A recipe that runs, of a sentence encoder and a file of text."""
    return {
        "name": "little",
        "task": "sentence_embedding",
        "teacher": str(teacher),
        "corpus": {"sources": [str(text)], "max_length": 40, "min_length": 4, "heldout": 0.2},
        "stages": list(stages),
        **more,
    }


def stage_result(run: Path, stage: str) -> Any:
    return json.loads((run / "stages" / stage / "result.json").read_text())


def distill(**changes: Any) -> dict[str, Any]:
    """A distillation of the teacher into itself: there is no student in these small recipes."""
    return {
        "kind": "distill",
        "model": "teacher",
        "objectives": [{"kind": "soft_targets"}],
        "training": {"epochs": 1},
        **changes,
    }


def finetune(**training: Any) -> dict[str, Any]:
    return {"kind": "finetune", "training": {"epochs": 1, **training}}


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "recipe.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def sentence_of(action: Any, *arguments: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message
