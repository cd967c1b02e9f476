"""What is refused before training, what is told, and what passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from tiny_labels import examples, write_model
from transformers import BertForSequenceClassification

from conftest import tiny_config, tiny_tokenizer
from potstill.data import Examples
from potstill.models import load_model
from potstill.recipe import Task, TaskData
from potstill.tasks import tokenize_task
from potstill.tasks.reading import read_task
from potstill.training import preflight
from potstill.training.preflight import (
    check_balance,
    check_start,
    check_teacher,
    check_tokens,
    sentence_of,
)
from tiny_tasks import questions, write_squad

NAMES = ["bad", "fair", "good", "great"]


def given(gold: Any) -> Examples:
    found = examples("classification", len(gold))
    return replace(found, gold=np.asarray(gold))


def answering(monkeypatch: pytest.MonkeyPatch, outputs: np.ndarray) -> None:
    """A teacher's logits, by example."""
    monkeypatch.setattr(
        preflight, "head_outputs", lambda _, sample: outputs[[int(n) for n in sample.origins]]
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models")
    return load_model(write_model("classification", folder / "teacher"), "classification")


def drawn(
    classes: int, right: float, count: int = 400, seed: int = 0, shares: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Gold labels, and those of a model that is right that often and else guesses."""
    rng = np.random.default_rng(seed)
    gold = rng.choice(classes, count, p=shares)
    guess = rng.integers(0, classes, count)
    return gold, np.where(rng.random(count) < right, gold, guess)


def test_a_good_teacher_passes(teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for classes in (2, 4):
        gold, said = drawn(classes, 0.8)
        answering(monkeypatch, np.eye(classes)[said])
        found = check_teacher(teacher, "teacher", given(gold), NAMES[:classes])
        assert found.warnings == []
        assert found.numbers["accuracy"] == pytest.approx(np.mean(gold == said))
        assert found.numbers["majority"] == pytest.approx(np.bincount(gold).max() / 400)


@pytest.mark.parametrize(
    ("classes", "order", "said"),
    [
        (2, [1, 0], "'bad' means 'fair', 'fair' means 'bad'"),
        (4, [0, 2, 1, 3], "'fair' means 'good', 'good' means 'fair'"),
        (4, [1, 2, 3, 0], "means"),
    ],
)
def test_labels_in_another_order_are_refused(
    classes: int, order: list[int], said: str, teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher's output c is right about the data's label order[c]."""
    gold, right = drawn(classes, 0.7)
    answering(monkeypatch, np.eye(classes)[np.argsort(order)[right]])
    with pytest.raises(ValueError, match="labels are in another order than the data's") as error:
        check_teacher(teacher, "teacher", given(gold), NAMES[:classes])
    message = str(error.value)
    parts = said.split(", ")
    assert all(part in message for part in parts)
    assert "data.labels" in message
    assert "\n" not in message


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("classes", [2, 4])
def test_a_random_head_is_told_and_never_taken_for_another_order(
    classes: int, seed: int, teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = [0.7, *[0.3 / (classes - 1)] * (classes - 1)]
    gold, said = drawn(classes, 0.0, seed=seed, shares=shares)
    answering(monkeypatch, np.eye(classes)[said])
    found = check_teacher(teacher, "teacher", given(gold), NAMES[:classes])
    assert any(
        "fit the labels no better than shuffled answers" in warning for warning in found.warnings
    )
    assert any("that of the majority label 'bad' is" in warning for warning in found.warnings)
    # one that always gives the rarest answer scores far below chance, yet fits no other order
    answering(monkeypatch, np.eye(classes)[np.full(400, classes - 1)])
    constant = check_teacher(teacher, "teacher", given(gold), NAMES[:classes])
    assert any("no better than shuffled answers" in warning for warning in constant.warnings)


def test_a_teacher_near_the_majority_is_told(teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 400, 80% have one label; it knows 12 of the others and errs in 4."""
    gold = np.array([0] * 320 + [1] * 80)
    said = gold.copy()
    said[320:388] = 0
    said[:4] = 1
    answering(monkeypatch, np.eye(2)[said])
    found = check_teacher(teacher, "teacher", given(gold), ["no", "yes"])
    (warning,) = found.warnings
    assert (
        "its accuracy on 400 held-out examples is 82%, and that of the majority label 'no' is 80%."
        in warning
    )


def test_few_examples_say_nothing(teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, np.eye(2)[np.zeros(10, dtype=int)])
    found = check_teacher(teacher, "teacher", given([1] * 10), ["no", "yes"])
    assert (found.warnings, found.numbers) == ([], {})


def of_task(teacher: Any, task: Task) -> Any:
    return replace(teacher, task=task)


def test_many_labels(teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 2, (300, 3))
    flips = rng.random((300, 3)) < 0.15
    said = np.where(flips, 1 - gold, gold)
    dev = given(np.zeros(300, dtype=int))
    dev = replace(dev, gold=gold)
    several = of_task(teacher, Task.MULTI_LABEL)
    answering(monkeypatch, said - 0.5)
    assert check_teacher(several, "teacher", dev, NAMES[:3]).warnings == []
    answering(monkeypatch, said[:, [0, 2, 1]] - 0.5)
    with pytest.raises(ValueError, match="'fair' means 'good'"):
        check_teacher(several, "teacher", dev, NAMES[:3])
    answering(monkeypatch, rng.normal(size=(300, 3)))
    (warning,) = check_teacher(several, "teacher", dev, NAMES[:3]).warnings
    assert "fit the labels no better than shuffled answers" in warning


def test_tags_in_another_order_are_refused(teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words are the examples; pieces without a tag count for nothing."""
    labels = ["O", "B-cask", "I-cask", "B-still", "I-still"]
    dev = examples("token_classification", 80, seed=1)
    rng = np.random.default_rng(0)
    gold = np.where(
        dev.gold < 0, dev.gold, rng.choice(5, len(dev.ids), p=[0.6, 0.1, 0.1, 0.1, 0.1])
    )
    dev = replace(dev, gold=gold)
    tagger = of_task(teacher, Task.TOKEN_CLASSIFICATION)

    def found(said: np.ndarray) -> Any:
        monkeypatch.setattr(preflight, "head_outputs", lambda *_: np.eye(5)[said])
        return check_teacher(tagger, "teacher", dev, labels)

    right = np.where(rng.random(len(gold)) < 0.9, np.maximum(gold, 0), 0)
    good = found(right)
    words = gold >= 0
    assert good.warnings == []
    assert good.numbers["accuracy"] == pytest.approx((gold == right)[words].mean())
    assert good.numbers["of"] == words.sum() < len(gold)
    (nothing,) = [w for w in found(np.zeros_like(gold)).warnings if "majority label 'O'" in w]
    assert f"on {words.sum()} held-out words" in nothing
    with pytest.raises(ValueError, match=r"held-out words its '[BI]-.*data\.labels"):
        found(np.array([0, 3, 4, 1, 2])[right])


def test_a_reader_that_answers_no_better_than_none_is_told(
    teacher: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train = write_squad(tmp_path / "train.json", questions(60))
    data = TaskData(train=train, dev=train, text=["question", "context"], label=["answers"])
    rows = read_task(data, Task.QUESTION_ANSWERING, 1, teacher_labels=None)
    dev = tokenize_task(rows, tiny_tokenizer()).dev
    reader = of_task(teacher, Task.QUESTION_ANSWERING)
    shares = np.array([not truths for truths in dev.answers]).mean()

    def found(outputs: np.ndarray) -> Any:
        monkeypatch.setattr(preflight, "head_outputs", lambda *_: outputs)
        return check_teacher(reader, "teacher", dev, ["start", "end"])

    silent = np.zeros((len(dev.ids), 2))
    silent[dev.offsets[:-1]] = 9.0
    (warning,) = found(silent).warnings
    assert warning.startswith(
        f"teacher: its F1 on 60 held-out questions is {shares:.2f}, and that of "
    )
    right = np.zeros((len(dev.ids), 2))
    for window, (first, last) in enumerate(dev.gold):
        right[dev.offsets[window] + first, 0] = right[dev.offsets[window] + last, 1] = 9.0
    assert found(right).warnings == []
    assert found(right).numbers == {"f1": 1.0, "majority": shares, "sentence": ANY, "of": 60}


def test_values(teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    gold = rng.uniform(0, 5, 200)
    value = of_task(teacher, Task.REGRESSION)

    def found(outputs: np.ndarray) -> Any:
        answering(monkeypatch, outputs[:, None])
        return check_teacher(value, "teacher", given(gold), ["score"])

    noisy = gold + rng.normal(size=200)
    assert found(noisy).warnings == []
    assert found(noisy).numbers["pearson"] == pytest.approx(np.corrcoef(noisy, gold)[0, 1])
    assert "on another scale" in found(20 * noisy).warnings[0]
    assert "its values are unrelated to the data's (" in found(rng.normal(size=200)).warnings[0]
    assert "all the same" in found(np.ones(200)).warnings[0]
    with pytest.raises(ValueError, match="fall where the data's rise"):
        found(5 - noisy)


def test_one_label_is_most_of_the_data() -> None:
    train = given([0] * 90 + [1] * 10)
    (warning,) = check_balance(train, ["no", "yes"], "accuracy").warnings
    assert "90% of the training examples are 'no'" in warning
    assert check_balance(train, ["no", "yes"], "matthews").warnings == []
    assert check_balance(given([0] * 70 + [1] * 30), ["no", "yes"], "accuracy").warnings == []


def test_a_student_that_starts_from_the_teacher_and_one_that_does_not(tmp_path: Path) -> None:
    folder = write_model("classification", tmp_path / "teacher", layers=2)
    own, same = (load_model(folder, "classification") for _ in range(2))
    dev = given([0] * 60)
    found = check_start(same, own, "teacher", dev)
    assert found.numbers == {"agreement": 1.0, "cosine": pytest.approx(1, abs=1e-5)}
    assert found.warnings == []
    assert (
        sentence_of("teacher", found.numbers)
        == "before training, student and teacher: same answer 100%, cosine of hidden states 1.00"
    )
    torch.manual_seed(7)
    random = BertForSequenceClassification(
        tiny_config(2, initializer_range=0.2, num_labels=3, hidden_size=32)
    )
    other = check_start(replace(same, model=random, name="student"), own, "teacher", dev)
    (warning,) = other.warnings
    assert warning.startswith("student: its hidden states are unrelated to those of teacher (")
    narrow = BertForSequenceClassification(tiny_config(2, num_labels=3, hidden_size=16))
    found = check_start(replace(same, model=narrow), own, "teacher", dev)
    assert found.numbers["cosine"] is None
    assert "cosine" not in sentence_of("teacher", found.numbers)


def test_another_tokenizer_is_refused(teacher: Any) -> None:
    tokenizer = tiny_tokenizer()
    texts = ["still pot", "copper malt barley water"]
    ids = [np.array(tokenizer(text)["input_ids"], dtype=np.int32) for text in texts]
    lengths = np.array([len(one) for one in ids], dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    kept = Examples(
        *(np.concatenate(ids), offsets, lengths, None, np.array([0, 1])),
        *([(text,) for text in texts], ["a.tsv:2", "a.tsv:3"]),
    )
    check_tokens(teacher, kept, 24)
    changed = replace(kept, ids=np.where(kept.ids == ids[1][2], ids[1][1], kept.ids))
    with pytest.raises(ValueError, match=r"gives other tokens for the text of a\.tsv:3 than"):
        check_tokens(teacher, changed, 24)
