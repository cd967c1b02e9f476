"""Token classification and question answering, from a plain encoder to a student that learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from conftest import Finished
from family_teachers import save_teacher
from potstill import evaluate
from potstill.pipeline import run
from potstill.recipe import Recipe
from potstill.tasks.tokens.scores import entities
from tiny_families import HEADS, MISSING, NAMES
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
                "training": {"epochs": epochs / 2, "evaluate_every": 1, **TRAINING},
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
    again = evaluate(
        [folder / "model"],
        text=str(tmp_path / "test.conll"),
        baseline=folder / "model",
        passage="tokens",
        label="tags",
    )
    own = again["models"][str(folder / "model")]["token_classification"]
    assert own["f1"] == pytest.approx(scores["f1"])
    assert set(again["references"]) == {"majority"}  # there is nothing to learn words' tags from
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
    again = evaluate(
        [folder / "model"],
        text=str(tmp_path / "test.json"),
        baseline=folder / "model",
        passage="question,context",
        label="answers",
    )
    # of whole contexts: the model learnt from windows of 24 tokens
    assert again["models"][str(folder / "model")]["question_answering"]["f1"] > 0.5
    shown = found["examples"][0]
    assert shown["teacher"]["top"] != shown["student"]["top"]
    model = AutoModelForQuestionAnswering.from_pretrained(folder / "model").eval()
    assert not torch.equal(model.qa_outputs.weight[0], model.qa_outputs.weight[1])
    assert "AutoModelForQuestionAnswering" in (folder / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "task"),
    [(name, "token_classification") for name in NAMES if (name, "tokens") not in MISSING]
    + [(name, "question_answering") for name in NAMES if (name, "answers") not in MISSING],
)
def test_every_family(name: str, task: str, tmp_path: Path) -> None:
    """From an encoder without the head to a student that plain transformers loads."""
    save_teacher(name, "headless", tmp_path / "teacher")
    head = "tokens" if task == "token_classification" else "answers"
    data = {**(tagged if head == "tokens" else asked)(tmp_path), "max_train": 40, "max_length": 40}
    tree = recipe(tmp_path / "teacher", task, data, 2)
    del tree["stages"][5], tree["stages"][2]
    folder = run(Recipe.model_validate(tree), output=tmp_path / "run")
    found = json.loads((folder / "stages/04-evaluate/result.json").read_text())
    assert set(found["models"]) == {"teacher", "untrained", "student"}
    assert all(0 <= found["models"][m][task]["f1"] <= 1 for m in found["models"])
    model = HEADS[head].from_pretrained(folder / "model").eval()
    assert model.config.num_hidden_layers == 2
    assert model.config.num_labels == (5 if head == "tokens" else 2)
    # what it is trained for, on examples that it is not trained on
    log = (folder / "stages/03-distill/log.jsonl").read_text().splitlines()
    losses = [e["loss"] for e in map(json.loads, log) if e["event"] == "evaluate"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["nomic_bert", "eurobert"])
def test_a_family_without_a_head_for_answers(name: str, tmp_path: Path) -> None:
    save_teacher(name, "headless", tmp_path / "teacher")
    tree = recipe(tmp_path / "teacher", "question_answering", asked(tmp_path), 1)
    with pytest.raises(ValueError, match=f"has no class of the family {name} for question_answ"):
        run(Recipe.model_validate(tree), output=tmp_path / "run")


@pytest.mark.parametrize("task", ["token_classification", "question_answering"])
def test_text_that_the_teacher_labels(
    task: str, sentence_teacher: Path, tmp_path: Path, potstill: Callable[..., Finished]
) -> None:
    """Unlabelled text takes part in the losses that need no gold, and a plan counts it."""
    data = tagged(tmp_path) if task == "token_classification" else asked(tmp_path)
    more = tmp_path / "more.jsonl"
    if task == "token_classification":
        rows = [{"tokens": [word for word, _ in s]} for s in tagged_sentences(64, seed=5)]
    else:
        rows = [{k: r[k] for k in ("question", "context")} for r in questions(64, seed=5)]
    more.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = recipe(sentence_teacher, task, {**data, "unlabelled": str(more)}, 1)
    tree["stages"][0]["training"] = {"max_steps": 2, **TRAINING}
    tree["stages"][3]["objectives"][2] = {"kind": "logits_mse"}
    tree["stages"][3]["training"] = {"epochs": 1, **TRAINING}
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    finished = potstill("run", tmp_path / "recipe.yaml", "--plan")
    assert finished.code == 0, finished.err
    folder = run(Recipe.model_validate(tree), output=tmp_path / "run")
    trained = json.loads((folder / "stages/04-distill/result.json").read_text())
    counts = trained["data"]["counts"]
    assert counts["unlabeled.examples"] >= 64
    examples = counts["train.examples"] + counts["unlabeled.examples"]
    assert trained["steps"] == -(-examples // 16)
    components = trained["final"]["components"]
    assert set(components) == {"soft_targets", "hard_targets", "logits_mse"}
    assert all(value > 0 for value in components.values())


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("token_classification", {"label": "tag"}, "train.conll:1: no column 'tag' (data.label)."),
        ("token_classification", {"text": "text"}, "The columns are tokens, tags"),
        (
            "token_classification",
            {"labels": ["O", "B-oak"]},
            "is not one of the model's labels: O, B-oak",
        ),
        (
            "token_classification",
            {"metric": "bleu"},
            "The metrics are f1, precision, recall, accuracy",
        ),
        (
            "token_classification",
            {"max_length": 99},
            "data.max_length: 99 tokens exceed the maximum",
        ),
        ("question_answering", {"text": "context"}, "question_answering reads two columns"),
        ("question_answering", {"label": "answer"}, "train.json[0]: no column 'answer' (data.la"),
        ("question_answering", {"train": "nowhere.json"}, "nowhere.json: the file was not found"),
        ("question_answering", {"stride": -1}, "data.stride: input should be greater than or eq"),
    ],
)
def test_bad_input(
    task: str,
    changes: dict[str, Any],
    message: str,
    sentence_teacher: Path,
    tmp_path: Path,
    potstill: Callable[..., Finished],
) -> None:
    data = tagged(tmp_path) if task == "token_classification" else asked(tmp_path)
    tree = recipe(sentence_teacher, task, {**data, **changes}, 1)
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    finished = potstill("run", tmp_path / "recipe.yaml", "--output", tmp_path / "run")
    assert finished.code == 2, finished.err
    said = " ".join(finished.err.split())
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
