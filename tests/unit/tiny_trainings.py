"""Short trainings of tiny models, and the log that they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from potstill.recipe import Recipe


def recipe(teacher: Path, text: Path, *stages: dict[str, Any], **corpus: Any) -> Recipe:
    settings = {"sources": [str(text)], "min_length": 4, "max_length": 24, "heldout": 0.1, **corpus}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "task": "masked_lm",
            "teacher": str(teacher),
            "corpus": settings,
            "stages": list(stages),
        }
    )


def finetune(**settings: Any) -> dict[str, Any]:
    exact = {"precision": "fp32"}  # bf16, where a CPU has it, rounds more than what is compared
    training_settings = {"batch_size": 8, "log_every": 1, "dropout": False, **exact, **settings}
    return {"kind": "finetune", "training": training_settings}


def events(folder: Path, stage: str, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "stages" / stage / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == kind]
