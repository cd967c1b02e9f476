"""Small recipes for tests, as mappings, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from potstill.recipe_files import RecipeError

EMBEDDING = ("teacher=model", "corpus.sources=text.txt")  # what its own recipe leaves open


def tree(*stages: dict[str, Any], task: str = "masked_lm", **changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "task": task,
        "teacher": "folder",
        "corpus": {"sources": "text.txt"},
        "stages": list(stages) or [{"kind": "report"}],
        **changes,
    }


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
