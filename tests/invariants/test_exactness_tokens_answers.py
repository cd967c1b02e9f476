"""Micro-batches change nothing where a batch's rows are its words, or starts and ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from potstill.pipeline import run
from potstill.recipe import Recipe
from tiny_tasks import questions, tagged_sentences, write_conll, write_squad


def recipe(teacher: Path, folder: Path, task: str, micro: int) -> Recipe:
    if task == "token_classification":
        rows = [{"tokens": [word for word, _ in s]} for s in tagged_sentences(20, seed=3)]
        data: dict[str, Any] = {
            "train": write_conll(folder / "train.conll", tagged_sentences(40)),
            **{"text": "tokens", "label": "tags"},
        }
    else:
        rows = [{k: r[k] for k in ("question", "context")} for r in questions(20, seed=3)]
        data = {
            "train": write_squad(folder / "train.json", questions(40)),
            **{"text": ["question", "context"], "label": "answers", "stride": 8},
        }
    more = folder / "more.jsonl"
    more.write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"batch_size": 8, "dropout": False, "log_every": 1, "learning_rate": 1e-3}
    training |= {"precision": "fp32"}  # of bf16 nobody could tell rounding from a mistake
    return Recipe.model_validate(
        {
            "name": "invariant",
            "task": task,
            "teacher": str(teacher),
            "data": {**data, "unlabelled": str(more), "max_length": 24},
            "stages": [
                {"kind": "finetune", "training": {"max_steps": 3, **training}},
                {"kind": "make_student"},
                {
                    "kind": "distill",
                    "objectives": [
                        {"kind": "soft_targets", "weight": 5.0},
                        {"kind": "hard_targets", "weight": 2.0, "target": "gold"},
                        {"kind": "logits_mse", "weight": 0.5},
                        {"kind": "hidden_cosine"},
                    ],
                    "training": {"max_steps": 6, "micro_batch_size": micro, **training},
                },
            ],
        }
    )


@pytest.mark.parametrize("task", ["token_classification", "question_answering"])
def test_micro_batches_change_nothing(task: str, sentence_teacher: Path, tmp_path: Path) -> None:
    whole, parts = (
        run(recipe(sentence_teacher, tmp_path, task, micro), output=tmp_path / f"run{micro}")
        for micro in (8, 2)
    )
    told = []
    for folder in (whole, parts):
        lines = (folder / "stages/03-distill/log.jsonl").read_text().splitlines()
        told.append([e for e in map(json.loads, lines) if e["event"] == "train"])
    assert len(told[0]) == len(told[1]) == 6
    for one, two in zip(*told, strict=True):
        assert one["components"] == pytest.approx(two["components"], rel=1e-5)
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (whole, parts))
    for name, value in first.items():
        # of the keys' biases the gradient is 0 but for rounding, which Adam blows up
        torch.testing.assert_close(value, second[name], rtol=1e-3, atol=1e-4)
