"""Recipes of tasks with labels, on little data and tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import WORDS, sentences
from potstill.recipe import Task

TRAINING = {"batch_size": 16, "learning_rate": 3e-3, "dropout": False}


def data(folder: Path, label: Callable[[str], Any], pair: bool = False) -> dict[str, Any]:
    """Short texts of known words; which word is first decides."""
    lines = []
    for number, text in enumerate(sentences(460)):
        words = text.split()[:5]
        first = [" ".join(words)]
        if pair:
            first.append(words[0] if number % 2 else WORDS[(WORDS.index(words[0]) + 7) % 30])
        value = str(number % 2) if pair else str(label(words[0]))
        lines.append("\t".join([*first, value]))
    columns = ["text", "other", "label"] if pair else ["text", "label"]
    for name, part in (("train", lines[:400]), ("test", lines[400:])):
        (folder / f"{name}.tsv").write_text("\n".join(["\t".join(columns), *part]) + "\n")
    return {
        "train": str(folder / "train.tsv"),
        "test": str(folder / "test.tsv"),
        "text": columns[:-1],
        "max_length": 24,
    }


def half(word: str) -> str:
    return "early" if WORDS.index(word) < 15 else "late"


def recipe(teacher: Path, task: str, given: dict[str, Any], **changes: Any) -> dict[str, Any]:
    objectives: list[dict[str, Any]] = [{"kind": "soft_targets"}, {"kind": "hard_targets"}]
    if not Task(task).has_distribution:
        objectives = [{"kind": "logits_mse"}, {"kind": "gold_mse"}]
    return {
        "name": "tiny",
        "task": task,
        "teacher": str(teacher),
        "data": given,
        "stages": [
            {"kind": "finetune", "training": {"epochs": 8, "keep": "best", **TRAINING}},
            {"kind": "make_student", "writes": "untrained"},
            {
                "kind": "finetune",
                "model": "untrained",
                "writes": "plain",
                "training": {"max_steps": 4, **TRAINING},
            },
            {
                "kind": "distill",
                "model": "untrained",
                "writes": "student",
                "objectives": [*objectives, {"kind": "hidden_cosine"}],
                "training": {"epochs": 2, **TRAINING},
                **changes,
            },
            {"kind": "evaluate"},
            {"kind": "report"},
        ],
    }
