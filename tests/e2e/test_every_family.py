"""A real run of each family, offline: teacher in, student that plain transformers loads out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from family_teachers import save_teacher
from potstill.pipeline import run
from potstill.recipe import Recipe
from tiny_families import HEADS, NAMES


def recipe(teacher: Path, text: Path, task: str) -> Recipe:
    hard = "gold" if task == "masked_lm" else "teacher"
    tree: dict[str, Any] = {
        "name": "tiny",
        "task": task,
        "teacher": str(teacher),
        "corpus": {"sources": str(text), "max_length": 64, "min_length": 4},
        "stages": [
            {"kind": "make_student", "writes": "untrained"},
            {
                "kind": "distill",
                "model": "untrained",
                "writes": "student",
                "objectives": [
                    {"kind": "soft_targets"},
                    {"kind": "hard_targets", "target": hard},
                    {"kind": "hidden_cosine"},
                ],
                "training": {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-3},
            },
            {"kind": "evaluate"},
        ],
    }
    return Recipe.model_validate(tree)


@pytest.mark.parametrize(
    ("name", "task"),
    [(name, "masked_lm") for name in NAMES]
    + [(name, "sentence_embedding") for name in ("mpnet", "xlm-roberta", "modernbert")],
)
def test_a_run(name: str, task: str, text_file: Path, tmp_path: Path) -> None:
    head = "masked_lm" if task == "masked_lm" else "headless"
    teacher = save_teacher(name, head, tmp_path / "teacher")
    folder = run(recipe(tmp_path / "teacher", text_file, task), output=tmp_path / "run")
    scores = json.loads((folder / "stages/03-evaluate/result.json").read_text())["models"]
    expected = {"BertForMaskedLM": "DistilBertForMaskedLM"}.get(teacher, teacher)
    student = getattr(transformers, expected).from_pretrained(folder / "model").eval()
    assert student.config.num_hidden_layers == 2
    # what the saved tokenizer gives is what the model takes, and its answers are real numbers
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    inputs = tokenizer(["the still runs", "copper pot"], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert all(v.isfinite().all() for v in student(**inputs).values() if torch.is_tensor(v))
    assert ("token_type_ids" in inputs) is (name in {"bert", "electra", "nomic_bert"} - {"bert"})
    assert HEADS[head].from_pretrained(folder / "model").config == student.config
    # 4 steps help: it is the student that was trained, and on what the teacher says
    key = ("agreement", "kl") if task == "masked_lm" else ("hidden", "cosine")
    better = scores["student"][key[0]][key[1]] - scores["untrained"][key[0]][key[1]]
    assert better < 0 if task == "masked_lm" else better > 0
