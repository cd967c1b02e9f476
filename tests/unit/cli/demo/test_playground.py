"""The playground of tiny runs: what its page asks for, and what it is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from potstill.cli.demo import playground
from potstill.cli.demo.answers import Answer
from potstill.cli.demo.playground import Playground, compare, describe, form_of, open_playground
from potstill.pipeline.run_models import models_of_run
from potstill.recipe import Task, load_recipe
from tiny_runs import LABELS, tiny_run

TASKS: list[tuple[Task, int]] = [
    ("masked_lm", 1),
    ("sentence_embedding", 2),
    ("sentence_similarity", 2),
    ("multi_label", 1),
    ("regression", 1),
    ("token_classification", 1),
    ("question_answering", 2),
]


def opened(run: Path, evaluation: dict[str, Any] | None = None) -> Playground:
    return open_playground(models_of_run(run), evaluation or {}, lambda _: None)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Playground:
    return opened(tiny_run(tmp_path_factory.mktemp("run"), "classification", columns=2))


def test_softened_distributions_are_those_of_plain_transformers(classifier: Playground) -> None:
    """softmax(z / T) of teacher, student and graph, whose logits plain transformers gives."""
    typed = ["copper & oak", "the <i>still</i> boils"]
    found = classifier.answer(typed)
    assert [model["name"] for model in found["models"]] == [
        "teacher",
        "student",
        "onnx",
        "untrained",
    ]
    [spread] = found["distributions"]
    for one in classifier.served:
        name, path = one.name, one.path
        folder = path if path.is_dir() else path.parent.parent
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
            logits = model(**tokenizer(*typed, return_tensors="pt")).logits[0].double().numpy()
        for step, heat in enumerate(classifier.temperatures):
            powers = np.exp(logits / heat)
            expected = dict(zip(LABELS.values(), powers / powers.sum(), strict=True))
            shown = [expected[label] for label in spread["candidates"]]
            assert spread["models"][name]["shares"][step] == pytest.approx(shown, abs=1e-5)
    json.dumps(found, allow_nan=False)


def test_the_runs_own_temperature_is_one_of_the_sliders(classifier: Playground) -> None:
    assert classifier.trained_at == [2.5]
    assert 2.5 in classifier.temperatures
    assert list(classifier.temperatures) == sorted(classifier.temperatures)
    told = describe(classifier)
    assert told["temperatures"][told["start"]] == "1"
    assert told["models"][2]["what"].startswith("exported, ONNX Runtime, ")


@pytest.mark.parametrize(("task", "fields"), TASKS, ids=[task for task, _ in TASKS])
def test_every_task_answers_its_own_example(tmp_path: Path, task: Task, fields: int) -> None:
    given = opened(tiny_run(tmp_path, task))
    assert len(given.fields) == fields
    assert (given.mask == "[MASK]") == (task == "masked_lm")
    found = given.answer([field.example for field in given.fields])
    json.dumps(found, allow_nan=False)
    assert [model["name"] for model in found["models"]] == [
        "teacher",
        "student",
        "onnx",
        "untrained",
    ]
    # the graph is the student's own
    student, onnx = found["models"][1:3]
    assert onnx["headline"] == student["headline"]
    softens = task not in ("regression", "sentence_similarity")
    assert bool(found["distributions"]) == softens
    for spread in found["distributions"]:
        a, b = (spread["models"][name]["shares"] for name in ("student", "onnx"))
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_times_are_the_median_of_warm_passes_on_one_thread(
    classifier: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    seconds = {"teacher": [99, 4, 2, 9, 3, 1], "student": [99, 1, 1, 1, 1, 5]}
    left = {name: iter(each) for name, each in seconds.items()}

    def asked(name: str) -> Any:
        def ask(_: Any) -> None:
            assert torch.get_num_threads() == 1
            clock[0] += next(left[name]) / 1000 if name in left else 0.5

        return ask

    for one, answerer in classifier.served.items():
        monkeypatch.setattr(answerer, "ask", asked(one.name))
    monkeypatch.setattr(playground.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(playground.time, "thread_time", lambda: clock[0])
    found = classifier.times(["oak", "malt"])
    assert found["milliseconds"]["teacher"] == pytest.approx(3.0)
    assert found["milliseconds"]["student"] == pytest.approx(1.0)
    assert found["noise"] is None
    # half of the time went to others
    left.update({name: iter(each) for name, each in seconds.items()})
    monkeypatch.setattr(playground.time, "thread_time", lambda: clock[0] / 2)
    assert "2.00 times their CPU time" in classifier.times(["oak", "malt"])["noise"]


def test_what_is_typed_wrong_is_told_in_a_sentence(classifier: Playground, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^“Second text” is empty\. Type some text into it\.$"):
        classifier.answer(["oak", " \n "])
    with pytest.raises(
        ValueError, match=r"^“First text” has 100,001 characters\. Paste at most 100,000\.$"
    ):
        classifier.times(["x" * 100_001, "oak"])
    filler = opened(tiny_run(tmp_path / "mlm", "masked_lm"))
    with pytest.raises(ValueError, match=r"has no \[MASK\] to fill\. Put one where a word is"):
        filler.answer(["the copper still"])
    encoder = opened(tiny_run(tmp_path / "embed", "sentence_embedding"))
    with pytest.raises(ValueError, match=r"holds 33 texts\. Give at most 32\.$"):
        encoder.answer(["oak", "\n".join(str(number) for number in range(33))])
    # empty lines and repeats are no texts
    found = encoder.answer(["oak", "malt\n\n malt \npeat"])
    assert len(found["distributions"][0]["candidates"]) == 2
    readers = opened(tiny_run(tmp_path / "qa", "question_answering"))
    with pytest.raises(ValueError, match=r"^the question leaves its context no room in 60 tokens"):
        readers.answer(["oak " * 40, "malt"])


def test_a_long_text_is_cut_and_said_to_be_once(classifier: Playground) -> None:
    found = classifier.answer(["oak " * 50, "malt"])
    [note] = found["notes"]
    assert note == "The text is longer than the maximum of 24 tokens. The rest of it was cut."
    assert all(model["notes"] == [] for model in found["models"])


@pytest.mark.parametrize(
    "text", ["[SEP] [CLS] [PAD]", "\x00\x07", "日本語 🥃", "<script>alert(1)</script>", "\u202e"]
)
def test_odd_texts_are_answered(classifier: Playground, text: str) -> None:
    assert len(classifier.answer([text, text])["models"]) == 4


def test_models_that_can_not_be_had_are_told_and_left_out(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "classification")
    shutil.rmtree(tmp_path / "teacher")
    (run / "stages/01-make_student/model/model.safetensors").unlink()
    said: list[str] = []
    found = open_playground(models_of_run(run), {}, said.append)
    assert [one.name for one in found.served] == ["student", "onnx"]
    assert set(found.absent) == {"teacher", "untrained"}
    assert len(said) == 2
    # the student takes the teacher's place as what the others are compared with
    assert found.answer(["oak"])["models"][1]["beside"]["told"] == "agrees with student"
    for folder in run.glob("stages/*/model"):
        shutil.rmtree(folder)
    with pytest.raises(
        ValueError, match=r"^tiny\.run: no model of the run can answer\. See the notes above\.$"
    ):
        open_playground(models_of_run(run), {}, said.append)


def test_two_answers_beside_each_other() -> None:
    first = Answer("a", ("a",))
    assert compare(Answer("a", ("a",)), first, "teacher") == {
        "alike": True,
        "told": "agrees with teacher",
    }
    assert compare(Answer("b", ("b",)), first, "teacher") == {
        "alike": False,
        "told": "differs from teacher",
    }
    value = Answer("0.5", value=0.5)
    assert compare(Answer("", value=0.5002), value, "teacher")["alike"] is True
    assert compare(Answer("", value=0.25), value, "teacher")["told"] == "0.250 below teacher"
    assert compare(Answer("", value=0.75), value, "teacher")["told"] == "0.250 above teacher"
    words = [("w", "O", 1.0)]
    tags = Answer("", ("O", "O", "B-x"), words=words)
    told = compare(Answer("", ("O", "B-x", "O"), words=words), tags, "teacher")["told"]
    assert told == "differs from teacher at 2 of 3 words"


def test_the_form_holds_an_example_of_the_runs_own(tmp_path: Path) -> None:
    def fields(task: Task, columns: int, *examples: dict[str, Any]) -> list[str]:
        folder = tmp_path / f"{task}{columns}{len(examples)}"
        run = tiny_run(folder, task, columns=columns)
        evaluation = {"examples": list(examples)}
        return [f.example for f in form_of(load_recipe(run / "recipe.yaml"), "[MASK]", evaluation)]

    pair = {"query": "one | two", "expected": "late", "teacher": {"top": "early", "p": 1.0}}
    assert fields("classification", 2, {"query": "one | two | three"}, pair) == ["one", "two"]
    assert fields("classification", 1, pair) == ["one | two"]
    assert fields("question_answering", 2, pair) == ["one", "two"]
    found = {
        "query": "title",
        "expected": "right",
        "teacher": {"top": "right", "rank": 1},
        "student": {"top": "wrong", "rank": 2},
    }
    assert fields("sentence_embedding", 1, found, found) == ["title", "right\nwrong"]
    assert "[MASK]" in fields("masked_lm", 1, pair)[0]
