"""Scores of task models against the models' own outputs, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from tiny_labels import bare
from transformers import BertForSequenceClassification

from conftest import sentences, tiny_config, tiny_tokenizer
from potstill.data import Examples
from potstill.data.sequences import Questions
from potstill.evaluation import evaluate_task, retention, tasks
from potstill.evaluation.lineup import Lineup
from potstill.models import load_model
from potstill.recipe import Evaluate, Task, TaskData
from potstill.tasks import TaskExamples, metrics, tokenize_task
from potstill.tasks.metrics import Case
from potstill.tasks.predictions import head_outputs
from potstill.tasks.reading import read_task
from potstill.tasks.scoring import constant_scores, task_score
from tiny_tasks import questions, write_squad


def classifier(folder: Path, seed: int, **settings: Any) -> Path:
    torch.manual_seed(seed)
    config = tiny_config(layers=1, initializer_range=0.3)
    config.update(settings)
    BertForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def examples(folder: Path, task: Task, label: Any) -> TaskExamples:
    lines = [f"{text}\t{label(text)}" for text in sentences(80)]
    path = folder / "data.tsv"
    path.write_text("\n".join(["text\tlabel", *lines]) + "\n", encoding="utf-8")
    row = Task(task)
    assert row is not None
    data = TaskData.model_validate({"train": str(path), "heldout": 0.5})
    return tokenize_task(read_task(data, row, 1, teacher_labels=None), tiny_tokenizer())


@pytest.fixture
def found(tmp_path: Path) -> TaskExamples:
    return examples(tmp_path, Task.CLASSIFICATION, lambda text: int("copper" in text))


def evaluated(
    models: dict[str, list[Path]],
    given: TaskExamples,
    task: Task = Task.CLASSIFICATION,
    *,
    tests: dict[str, Examples] | None = None,
    **parts: str,
) -> dict[str, Any]:
    lineup = Lineup(models, "teacher", 1, **parts)
    case = Case(task, given.labels, given.test, given.train, tests or {})
    return evaluate_task(lineup, case, Evaluate())


def logits_of(folder: Path, side: Examples) -> np.ndarray:
    """One text at a time, by plain transformers."""
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        each = [model(**tokenizer(*texts, return_tensors="pt")).logits for texts in side.texts]
    return torch.cat(each).numpy()


def test_outputs_are_in_the_examples_order(found: TaskExamples, tmp_path: Path) -> None:
    folder = classifier(tmp_path / "model", 0)
    loaded = load_model(folder, "classification")
    loaded.model.train()
    outputs = head_outputs(loaded, found.test)
    assert outputs == pytest.approx(logits_of(folder, found.test), abs=1e-5)
    assert loaded.model.training  # as it was: training goes on
    expected = accuracy_score(found.test.gold, outputs.argmax(axis=1))
    assert task_score(loaded, found.test, found.labels, "accuracy") == pytest.approx(expected)


def test_an_error_is_a_negative_score(tmp_path: Path) -> None:
    given = examples(tmp_path, Task("regression"), lambda text: len(text.split()) / 10)
    loaded = load_model(classifier(tmp_path / "m", 0, num_labels=1), "regression")
    outputs = head_outputs(loaded, given.dev)[:, 0]
    expected = -float(((outputs - given.dev.gold) ** 2).mean())
    assert task_score(loaded, given.dev, given.labels, "mse") == pytest.approx(expected, rel=1e-5)


def test_trainings_of_one_model_score_their_mean(found: TaskExamples, tmp_path: Path) -> None:
    teacher = classifier(tmp_path / "teacher", 0)
    runs = [classifier(tmp_path / str(seed), seed) for seed in (1, 2)]
    result = evaluated({"teacher": [teacher], "student": runs}, found, student="student")
    each = [
        accuracy_score(found.test.gold, logits_of(run, found.test).argmax(axis=1)) for run in runs
    ]
    scores = result["models"]["student"]["classification"]
    assert scores["seeds"] == pytest.approx(each)
    assert scores["accuracy"] == pytest.approx(np.mean(each))
    assert "seeds" not in result["models"]["teacher"]["classification"]
    assert result["records"] == len(found.test)
    assert "agreement" not in result["models"]["teacher"]


def test_what_guessing_scores(found: TaskExamples, tmp_path: Path) -> None:
    result = evaluated({"teacher": [classifier(tmp_path / "t", 0)]}, found)
    commonest = np.bincount(found.train.gold).argmax()
    share = float((found.test.gold == commonest).mean())
    assert list(result) == [
        *("task", "records", "baseline", "labels", "metric", "twin", "models", "references"),
        *("retention", "intervals", "differences", "findings", "softened", "confusion"),
        "examples",
    ]
    assert result["references"]["majority"]["classification"]["accuracy"] == pytest.approx(share)
    # one word tells the label, and a linear model on words finds it
    assert result["references"]["tfidf"]["classification"]["accuracy"] > share


def fake(monkeypatch: pytest.MonkeyPatch, outputs: dict[str, np.ndarray]) -> None:
    """Models whose folders' names say what they answer."""
    monkeypatch.setattr(tasks, "load_model", lambda folder, *_, **__: folder.name)
    monkeypatch.setattr(tasks, "_in_order", lambda name, *_: outputs[name])


def sure(labels: np.ndarray) -> np.ndarray:
    return np.where(np.arange(2) == labels[:, None], 4.0, 0.0)


def test_retention_difference_and_findings(
    found: TaskExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold = found.test.gold
    wrong = gold.copy()
    wrong[:4] = 1 - wrong[:4]
    bad = gold.copy()
    bad[::2] = 1 - bad[::2]
    outputs = {"teacher": sure(gold), "student": sure(wrong), "plain": sure(bad)}
    fake(monkeypatch, outputs)
    folders = {name: [Path(name)] for name in outputs}
    result = evaluated(folders, found, student="student", twin="plain")
    count = len(gold)
    assert result["retention"]["student"]["classification.accuracy"] == pytest.approx(1 - 4 / count)
    drawn = retention.resampled([metrics.accuracy(gold, answer) for answer in (wrong, bad)], seed=1)
    told = result["differences"]["plain"]
    assert told["difference"] == pytest.approx((gold == wrong).mean() - (gold == bad).mean())
    assert told["interval"] == pytest.approx(np.percentile(drawn[0] - drawn[1], [2.5, 97.5]))
    assert not any("plain" in finding for finding in result["findings"])
    swapped = evaluated(folders, found, student="plain", twin="student")
    assert (
        "plain does not beat student, trained without distillation (accuracy)"
        in swapped["findings"]
    )
    shown = result["examples"]
    assert {example["query"] for example in shown} == {text for (text,) in found.test.texts[:4]}
    assert shown[0]["teacher"]["top"] == shown[0]["expected"]


def test_no_retention_of_a_teacher_that_guesses(
    found: TaskExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    commonest = np.full_like(found.test.gold, np.bincount(found.train.gold).argmax())
    fake(monkeypatch, {"teacher": sure(commonest), "student": sure(found.test.gold)})
    result = evaluated({name: [Path(name)] for name in ("teacher", "student")}, found)
    assert "classification.accuracy" not in result["retention"]["student"]


def test_a_difference_that_could_be_chance_is_told(
    found: TaskExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold = found.test.gold
    one, two = gold.copy(), gold.copy()
    one[:3], two[3:7] = 1 - one[:3], 1 - two[3:7]
    fake(monkeypatch, {"teacher": sure(gold), "student": sure(one), "plain": sure(two)})
    folders = {name: [Path(name)] for name in ("teacher", "student", "plain")}
    result = evaluated(folders, found, student="student", twin="plain")
    assert any(
        finding.startswith(
            "student scores better than plain, trained without distillation, but the difference is "
            "not statistically significant: its 95% confidence interval (accuracy) includes 0"
        )
        for finding in result["findings"]
    )


def test_many_labels_and_values(tmp_path: Path) -> None:
    given = examples(
        tmp_path,
        Task.MULTI_LABEL,
        lambda text: ",".join(word for word in ("copper", "oak") if word in text),
    )
    problem = {"num_labels": 2, "problem_type": "multi_label_classification"}
    folder = classifier(tmp_path / "many", 0, **problem)
    result = evaluated({"teacher": [folder], "student": [folder]}, given, Task.MULTI_LABEL)
    assert result["models"]["student"]["agreement"] == {"labels": 1.0}
    assert result["references"]["tfidf"]["multi_label"]["micro_f1"] > 0.5
    given = examples(tmp_path, Task("regression"), lambda text: len(text.split()) / 10)
    folder = classifier(tmp_path / "value", 0, num_labels=1)
    result = evaluated({"teacher": [folder], "student": [folder]}, given, Task.REGRESSION)
    assert result["models"]["student"]["agreement"]["pearson"] == pytest.approx(1.0)
    mean = float(given.train.gold.mean())
    expected = float(((given.test.gold - mean) ** 2).mean())
    found = result["references"]["majority"]["regression"]
    assert found["mse"] == pytest.approx(expected, rel=1e-5)


def test_labels_in_another_order_and_other_labels(tmp_path: Path) -> None:
    """The same model with its labels turned around gives the same answers."""
    given = examples(tmp_path, Task("classification"), lambda t: "yes" if "copper" in t else "no")
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    folder = classifier(tmp_path / "model", 0, **names)
    model = BertForSequenceClassification.from_pretrained(folder)
    turned = tmp_path / "turned"
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight.flip(0))
        model.classifier.bias.copy_(model.classifier.bias.flip(0))
    model.config.update({"id2label": {0: "yes", 1: "no"}, "label2id": {"yes": 0, "no": 1}})
    model.save_pretrained(turned)
    tiny_tokenizer().save_pretrained(turned)
    result = evaluated({"teacher": [folder], "turned": [turned]}, given)
    same = result["models"]["turned"]
    assert same["agreement"]["top1"] == 1.0
    assert same["classification"] == result["models"]["teacher"]["classification"]
    names = {"id2label": {0: "no", 1: "perhaps"}, "label2id": {"no": 0, "perhaps": 1}}
    other = classifier(tmp_path / "other", 0, **names)
    with pytest.raises(ValueError, match=r"labels of .*other are no, perhaps, and the baseline's"):
        evaluated({"teacher": [folder], "other": [other]}, given)


def test_questions_that_one_tokenizer_leaves_out_are_refused(tmp_path: Path) -> None:
    train = write_squad(tmp_path / "train.json", questions(20))
    row = Task.QUESTION_ANSWERING
    assert row is not None
    data = TaskData.model_validate(
        {"train": train, "text": ["question", "context"], "label": "answers", "heldout": 0.5}
    )
    rows = read_task(data, row, 1, teacher_labels=None)
    found = tokenize_task(rows, tiny_tokenizer())
    items = found.test.items
    fewer = found.test.first(items - 1)
    with pytest.raises(ValueError, match=f"{items - 1} questions leave room for .* of trimmed"):
        evaluated(
            {"teacher": [], "trimmed": []},
            found,
            Task.QUESTION_ANSWERING,
            tests={"trimmed": fewer},
        )


def test_confusion_counts_what_was_given_for_what_was_right(
    found: TaskExamples, tmp_path: Path
) -> None:
    folders = {
        "teacher": [classifier(tmp_path / "t", 0)],
        "student": [classifier(tmp_path / "s", 1)],
    }
    confusion = evaluated(folders, found)["confusion"]
    for name, [folder] in folders.items():
        given = logits_of(folder, found.test).argmax(axis=1)
        counts = [[0, 0], [0, 0]]
        for right, answer in zip(found.test.gold.tolist(), given.tolist(), strict=True):
            counts[right][answer] += 1
        assert confusion[name] == counts


def labelled(gold: Any) -> Examples:
    count = len(gold)
    ids = np.zeros(count, dtype=np.int32)
    texts = [("x",)] * count
    lengths, offsets = np.ones(count, dtype=np.int32), np.arange(count + 1)
    return Examples(ids, offsets, lengths, None, np.array(gold), texts, ["x"] * count)


def test_the_most_that_a_constant_answer_scores() -> None:
    # three of five are 1. Always 1: accuracy 3/5, F1 2 * 3 / (5 + 3); always 0: 2/5 and 0
    found = constant_scores(Task.CLASSIFICATION, labelled([1, 0, 1, 1, 0]), ["0", "1"])
    assert found["accuracy"] == pytest.approx(0.6)
    assert found["f1"] == pytest.approx(0.75)
    assert found["matthews"] == 0
    # where 0 is commoner the best accuracy is that of 0, the best F1 still that of 1
    found = constant_scores(Task.CLASSIFICATION, labelled([0, 0, 0, 1]), ["0", "1"])
    assert found["accuracy"] == pytest.approx(0.75)
    assert found["f1"] == pytest.approx(2 / 5)
    assert constant_scores(Task.REGRESSION, labelled([1.0, 2.0]), ["score"]) == {
        "pearson": 0.0,
        "spearman": 0.0,
    }
    answers = [["Paris"], [], ["Rome"], []]
    asked = bare(Questions, questions=[("q", "c")] * 4, answers=answers)
    found = constant_scores(Task.QUESTION_ANSWERING, asked, [])
    assert found == {"exact_match": 0.5, "f1": 0.5}
