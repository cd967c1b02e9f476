"""Token classification and question answering, from a plain encoder to a student that learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from potstill.pipeline import run
from potstill.recipe import Recipe
from potstill.token_scores import entities
from tiny_tasks import questions, tagged_sentences, write_conll, write_squad

TRAINING = {"batch_size": 16, "learning_rate": 3e-3, "dropout": False}


def recipe(teacher: Path, task: str, data: dict[str, Any], epochs: int) -> dict[str, Any]:
    return {
        "name": "tiny",
        "task": task,
        "teacher": str(teacher),
        "data": data,
        "stages": [
            {"kind": "finetune", "training": {"epochs": epochs, "keep": "best", **TRAINING}},
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
                "objectives": [
                    {"kind": "soft_targets"},
                    {"kind": "hard_targets", "target": "gold"},
                    {"kind": "hidden_cosine"},
                ],
                "training": {"epochs": epochs / 2, **TRAINING},
            },
            {"kind": "evaluate"},
            {"kind": "report"},
        ],
    }


def tagged(folder: Path) -> dict[str, Any]:
    return {
        "train": write_conll(folder / "train.conll", tagged_sentences(300)),
        "test": write_conll(folder / "test.conll", tagged_sentences(60, seed=1)),
        "text": "tokens",
        "label": "tags",
        "max_length": 40,
    }


def asked(folder: Path) -> dict[str, Any]:
    return {
        "train": write_squad(folder / "train.json", questions(500)),
        "test": write_squad(folder / "test.json", questions(80, seed=1)),
        "text": ["question", "context"],
        "label": "answers",
        "max_length": 24,
        "stride": 8,
    }


def result(folder: Path) -> Any:
    return json.loads((folder / "stages/05-evaluate/result.json").read_text())


def test_entities(sentence_teacher: Path, tmp_path: Path) -> None:
    tree = recipe(sentence_teacher, "token_classification", tagged(tmp_path), 6)
    folder = run(Recipe.model_validate(tree), output=tmp_path / "run")
    found = result(folder)
    scores = found["models"]["student"]["token_classification"]
    assert scores["f1"] > 0.9
    # what takes no network: no entity at all, and each word's commonest tag
    references = {k: v["token_classification"]["f1"] for k, v in found["references"].items()}
    assert references["majority"] == 0
    assert 0 < references["lexicon"] < scores["f1"] - 0.4
    assert found["labels"] == ["O", "B-cask", "I-cask", "B-still", "I-still"]
    assert found["records"] == 60
    # the published model says the same to plain transformers, a sentence at a time
    model = AutoModelForTokenClassification.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    both = gold = given = 0
    for sentence in tagged_sentences(60, seed=1):
        words, tags = zip(*sentence, strict=True)
        inputs = tokenizer(list(words), is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            answers = model(**inputs).logits[0].argmax(-1).tolist()
        first = [inputs.word_ids().index(number) for number in range(len(words))]
        one = entities(tags)
        two = entities([model.config.id2label[answers[at]] for at in first])
        both, gold, given = both + len(one & two), gold + len(one), given + len(two)
    assert scores["f1"] == pytest.approx(2 * both / (gold + given))
    assert "token-classification" in (folder / "model" / "README.md").read_text()
    assert (folder / "report.html").is_file()


def test_answers(sentence_teacher: Path, tmp_path: Path) -> None:
    tree = recipe(sentence_teacher, "question_answering", asked(tmp_path), 12)
    folder = run(Recipe.model_validate(tree), output=tmp_path / "run")
    found = result(folder)
    scores = found["models"]["student"]["question_answering"]
    references = {k: v["question_answering"]["f1"] for k, v in found["references"].items()}
    assert scores["f1"] > 0.6
    assert scores["f1"] > max(references.values()) + 0.25  # no answer at all, and a sentence
    assert found["records"] == 80  # questions, not windows
    model = AutoModelForQuestionAnswering.from_pretrained(folder / "model").eval()
    assert not torch.equal(model.qa_outputs.weight[0], model.qa_outputs.weight[1])
    assert "AutoModelForQuestionAnswering" in (folder / "model" / "README.md").read_text()
