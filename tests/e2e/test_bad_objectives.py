"""Objectives and teachers that can't be served: one sentence, exit code 2, nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import BertForMaskedLM, BertModel

from bad_input import Potstill, refused, run, tree, work
from conftest import tiny_config, tiny_tokenizer

__all__ = ["work"]  # a fixture


def distill(*objectives: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "kind": "distill",
        "objectives": list(objectives),
        "training": {"max_steps": 2, "batch_size": 4},
        **changes,
    }


@pytest.mark.parametrize(
    ("objective", "parts"),
    [
        (
            {"kind": "hidden_mse", "layers": [0, 9]},
            ["objectives.hidden_mse.layers: 9 is out of range", "layers are 0 to 3"],
        ),
        (
            {"kind": "patient_hidden", "layers": [1, 1]},
            ["patient_hidden.layers: it names 2 layers", "Name"],
        ),
        (
            {"kind": "relations", "heads": 5},
            ["relations.heads: 5 does not divide", "divisor of 32"],
        ),
        ({"kind": "relations", "teacher_layer": 4}, ["relations.teacher_layer: 4 is out of range"]),
        (
            {"kind": "vector_mse"},
            ["objectives.vector_mse: masked_lm has no vector of a whole text"],
        ),
    ],
)
def test_an_objective_that_the_pair_can_not_serve(
    potstill: Potstill,
    masked_lm_teacher: Path,
    text_file: Path,
    work: Path,
    objective: dict[str, Any],
    parts: list[str],
) -> None:
    stages = [{"kind": "make_student"}, distill(objective)]
    refused(run(potstill, tree(masked_lm_teacher, text_file, stages=stages)), *parts)
    assert not (work / "runs").exists()


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("masked_lm", "the student predicts 87 tokens and teacher other 88"),
        ("sentence_embedding", "the student and teacher other have different vocabularies"),
    ],
)
def test_a_second_teacher_of_another_vocabulary(
    potstill: Potstill,
    masked_lm_teacher: Path,
    sentence_teacher: Path,
    text_file: Path,
    work: Path,
    task: str,
    sentence: str,
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["whisky"])
    kind = BertForMaskedLM if task == "masked_lm" else BertModel
    kind(tiny_config(vocab_size=tiny_config().vocab_size + 1)).save_pretrained("other")
    tokenizer.save_pretrained("other")
    stages = [
        {"kind": "make_student"},
        distill({"kind": "hidden_cosine"}, teacher=["teacher", "other"]),
    ]
    first = masked_lm_teacher if task == "masked_lm" else sentence_teacher
    recipe = tree(first, text_file, task=task, teachers={"other": "./other"}, stages=stages)
    refused(run(potstill, recipe), sentence)
    assert not (work / "runs").exists()


def test_a_second_teacher_that_is_not_there(
    potstill: Potstill, masked_lm_teacher: Path, text_file: Path, work: Path
) -> None:
    recipe = tree(masked_lm_teacher, text_file, teachers={"big": "./nowhere"})
    refused(
        run(potstill, recipe),
        "teachers.big.model: './nowhere' was not found. Check the path of the model folder.",
    )
    assert not (work / "runs").exists()
