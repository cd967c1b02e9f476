"""Scores of sentence encoders, against plain loops over plain transformers' vectors."""

from __future__ import annotations

import math
import re
import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoTokenizer, BertModel

from conftest import sentences, student_of, tiny_config, tiny_tokenizer
from potstill.data.sources import Record
from potstill.evaluation import embeddings, evaluate_embeddings, retrieval
from potstill.evaluation import retention as bootstrap
from potstill.evaluation.embeddings import check_records
from potstill.evaluation.lineup import Lineup
from potstill.recipe import Evaluate

COUNT = 24
SETTINGS = Evaluate(query="title", passage="body", label="label")


def record(number: int, title: str, body: str, label: str = "a") -> Record:
    return Record({"title": title, "body": body, "label": label}, f"text.csv:{number + 2}")


def articles(count: int = COUNT) -> list[Record]:
    """Titles are the first six words of their bodies, each another; the last words tell a topic."""
    by_title = {" ".join(text.split()[:6]): text for text in sentences(60, seed=11)}
    result = []
    for number, (title, text) in enumerate(list(by_title.items())[:count]):
        topic = ("copper", "oak")[number % 2]
        result.append(record(number, title, f"{text} {' '.join([topic] * 6)}", topic))
    assert len(result) == count
    return result


def lineup(models: dict[str, Path], seed: int = 1, **parts: str | None) -> Lineup:
    """Models of one training each, beside the teacher."""
    return Lineup({name: [folder] for name, folder in models.items()}, "teacher", seed, **parts)


@pytest.fixture(scope="module")
def student(sentence_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return student_of(sentence_teacher, "sentence_embedding", tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def result(sentence_teacher: Path, student: Path) -> dict[str, Any]:
    models = {"student": student, "copy": sentence_teacher, "teacher": sentence_teacher}
    return evaluate_embeddings(lineup(models, 5), articles(), SETTINGS)


@cache
def plain(folder: Path) -> tuple[Any, Any]:
    return AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def hidden_states(folder: Path, text: str) -> torch.Tensor:
    model, tokenizer = plain(folder)
    inputs = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).last_hidden_state[0].double()


def unit_vectors(folder: Path, texts: list[str]) -> list[np.ndarray]:
    vectors = [hidden_states(folder, text).mean(0).numpy() for text in texts]
    return [vector / math.sqrt(sum(vector**2)) for vector in vectors]


def column(name: str, records: list[Record] | None = None) -> list[str]:
    return [one.columns[name] for one in records or articles()]


def ranks_of(folder: Path) -> list[int]:
    passages, queries = (unit_vectors(folder, column(name)) for name in ("body", "title"))
    ranks = []
    for right, query in enumerate(queries):
        scores = [float(query @ passage) for passage in passages]
        ranks.append(1 + sum(s >= scores[right] for i, s in enumerate(scores) if i != right))
    return ranks


# --- scores ---------------------------------------------------------------------------------------


def test_what_a_result_holds(result: dict[str, Any]) -> None:
    assert result["task"] == "sentence_embedding"
    assert result["records"] == COUNT
    assert result["baseline"] == "teacher"
    assert list(result["models"]) == ["teacher", "student", "copy"]  # the baseline first
    assert set(result["references"]["tfidf"]) == {"retrieval", "topic_probe"}
    assert set(result["retention"]) == set(result["intervals"]) == {"student", "copy"}


def test_retrieval_is_that_of_plain_loops(
    result: dict[str, Any], sentence_teacher: Path, student: Path
) -> None:
    ranks = {"teacher": ranks_of(sentence_teacher), "student": ranks_of(student)}
    for name, of in ranks.items():
        scores = result["models"][name]["retrieval"]
        assert scores["mrr"] == pytest.approx(sum(1 / rank for rank in of) / COUNT)
        assert scores["recall_at_1"] == pytest.approx(of.count(1) / COUNT)
    assert ranks["teacher"] != ranks["student"]
    assert 0 < ranks["student"].count(1) < COUNT  # neither score is at its end


def test_similarity_is_the_correlation_of_all_pairs(
    result: dict[str, Any], sentence_teacher: Path, student: Path
) -> None:
    pairs = []
    for folder in (sentence_teacher, student):
        vectors = unit_vectors(folder, column("body"))
        pairs.append([float(a @ b) for i, a in enumerate(vectors) for b in vectors[i + 1 :]])
    expected = np.corrcoef(*pairs)[0, 1]
    found = result["models"]["student"]["similarity"]["pearson"]
    assert found == pytest.approx(expected, abs=1e-4)
    assert 0 < found < 0.999


def test_hidden_cosine_is_over_all_real_tokens(
    result: dict[str, Any], sentence_teacher: Path, student: Path
) -> None:
    cosines = []
    for text in column("body"):
        pairs = (hidden_states(folder, text) for folder in (sentence_teacher, student))
        for a, b in zip(*pairs, strict=True):
            cosines.append(float(a @ b / (a.norm() * b.norm())))
    found = result["models"]["student"]["hidden"]["cosine"]
    assert found == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    assert found < 0.99


def test_topics_are_those_of_a_cross_validated_probe(result: dict[str, Any], student: Path) -> None:
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    splits = StratifiedKFold(5, shuffle=True, random_state=5)
    vectors, labels = np.stack(unit_vectors(student, column("body"))), np.array(column("label"))
    held_out = cross_val_score(probe, vectors, labels, cv=splits)
    sizes = [len(test) for _, test in splits.split(vectors, labels)]
    expected = sum(held_out * sizes) / COUNT
    assert result["models"]["student"]["topic_probe"]["accuracy"] == pytest.approx(expected)


def test_a_model_keeps_all_of_itself(result: dict[str, Any]) -> None:
    assert result["models"]["copy"] == result["models"]["teacher"]
    assert result["models"]["copy"]["similarity"]["pearson"] == pytest.approx(1)
    assert result["models"]["copy"]["hidden"]["cosine"] == pytest.approx(1)
    assert set(result["retention"]["copy"].values()) == {1.0}
    assert all(bounds == [1.0, 1.0] for bounds in result["intervals"]["copy"].values())


def test_retention_is_the_score_over_the_baselines(result: dict[str, Any]) -> None:
    teacher, student = result["models"]["teacher"], result["models"]["student"]
    # of 24 questions the baseline answers so few that it might as well have guessed
    assert teacher["retrieval"]["recall_at_1"] < 0.25
    kept_scores = {"retrieval.mrr", "topic_probe.accuracy"}
    assert set(result["retention"]["student"]) == kept_scores
    for key, kept in result["retention"]["student"].items():
        task, metric = key.split(".")
        assert kept == pytest.approx(student[task][metric] / teacher[task][metric])
    assert set(result["intervals"]["student"]) == kept_scores
    for key, (low, high) in result["intervals"]["student"].items():
        assert low < result["retention"]["student"][key] < high


def test_the_keys_of_a_result(result: dict[str, Any]) -> None:
    assert list(result) == [
        *("task", "records", "baseline", "models", "references", "retention", "intervals", "twin"),
        *("differences", "findings", "softened", "examples"),
    ]
    assert (result["task"], result["baseline"]) == ("sentence_embedding", "teacher")


def test_a_teacher_that_guesses_has_no_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are at their chance levels: H(P) / P, 1 / P, and 3/4 of the items have one label."""
    monkeypatch.setattr(embeddings, "Runtime", RandomVectors)
    monkeypatch.setattr(embeddings, "_hidden_cosines", lambda *_: {})
    records = [record(i, f"title {i}", f"body {i}", "aaab"[i % 4]) for i in range(400)]
    seen: dict[str, float] = {}

    def retentions(*arguments: Any) -> Any:
        seen.update(arguments[2])
        return original(*arguments)

    original = bootstrap.retentions
    monkeypatch.setattr(bootstrap, "retentions", retentions)
    models = {"teacher": Path(), "student": Path()}
    found = evaluate_embeddings(lineup(models), records, SETTINGS)
    scores = found["models"]["teacher"]
    assert seen["retrieval.mrr"] == pytest.approx(sum(1 / rank for rank in range(1, 401)) / 400)
    assert seen["retrieval.recall_at_1"] == 1 / 400
    assert seen["topic_probe.accuracy"] == 0.75
    assert scores["retrieval"]["mrr"] == pytest.approx(seen["retrieval.mrr"], abs=0.01)
    assert scores["topic_probe"]["accuracy"] == pytest.approx(0.75, abs=0.01)
    assert (found["retention"], found["intervals"]) == ({"student": {}}, {})


class RandomVectors:
    """In place of `Runtime`: an encoder that is not there."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    @staticmethod
    def open(folder: Path, task: str) -> RandomVectors:
        return RandomVectors()

    def embed(self, texts: list[str], **options: Any) -> np.ndarray:
        return self.generator.normal(size=(len(texts), 4)).astype(np.float32)


def test_memory_does_not_grow_with_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "Runtime", RandomVectors)
    monkeypatch.setattr(retrieval, "BLOCK", 20_000)
    count = 2000
    records = [record(i, f"title {i}", f"body {i}") for i in range(count)]
    tracemalloc.start()
    try:
        found = evaluate_embeddings(lineup({"teacher": Path()}), records, SETTINGS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found["records"] == count
    assert found["softened"] is not None
    assert peak < count**2  # bytes: a quarter of one matrix in float32


def test_blocks_change_nothing(
    result: dict[str, Any],
    sentence_teacher: Path,
    student: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", 5 * COUNT)
    models = {"student": student, "copy": sentence_teacher, "teacher": sentence_teacher}
    other = evaluate_embeddings(lineup(models, 5), articles(), SETTINGS)
    for name, tasks in result["models"].items():
        for task, scores in tasks.items():
            assert other["models"][name][task] == pytest.approx(scores, rel=1e-9)
    assert other["references"] == result["references"]
    assert other["softened"]["text"] == result["softened"]["text"]
    assert other["softened"]["candidates"] == result["softened"]["candidates"]


# --- what the report shows ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beside_student(sentence_teacher: Path, student: Path) -> dict[str, Any]:
    """Scores of the teacher and its student alone."""
    models = {"teacher": sentence_teacher, "student": student}
    return evaluate_embeddings(lineup(models, 5), articles(), SETTINGS)


def test_the_softened_example_is_a_softmax_over_all_passages(
    result: dict[str, Any],
    beside_student: dict[str, Any],
    sentence_teacher: Path,
    student: Path,
) -> None:
    models = {"teacher": sentence_teacher, "student": student}
    shown = beside_student["softened"]
    titles = column("title")
    cosines = {}
    for name, folder in models.items():
        query = unit_vectors(folder, [shown["text"]])[0]
        passages = unit_vectors(folder, column("body"))
        cosines[name] = {
            t: float(query @ passage) for t, passage in zip(titles, passages, strict=True)
        }

    def share(name: str, title: str, temperature: float) -> float:
        weights = {t: math.exp(20 * cosine / temperature) for t, cosine in cosines[name].items()}
        return weights[title] / sum(weights.values())

    nearest = sorted(titles, key=lambda title: -cosines["teacher"][title])[:8]
    assert shown["candidates"] == nearest
    assert shown["candidates"][0] == shown["text"]  # a question that the baseline answers
    assert list(shown["temperatures"]) == ["0.5", "1", "2", "4"]
    for temperature, found in shown["temperatures"].items():
        expected = [share("teacher", title, float(temperature)) for title in nearest]
        assert found == pytest.approx(expected, rel=1e-3)
    assert sum(shown["temperatures"]["4"]) < 0.8  # the other 16 have their share
    expected = [share("student", title, 1) for title in nearest]
    assert shown["student"]["1"] == pytest.approx(expected, rel=1e-3)
    assert result["softened"]["temperatures"] == shown["temperatures"]


def test_examples_are_questions_answered_differently(
    result: dict[str, Any],
    beside_student: dict[str, Any],
    sentence_teacher: Path,
    student: Path,
) -> None:
    models = {"teacher": sentence_teacher, "student": student}
    examples = beside_student["examples"]
    titles = column("title")
    ranks = {name: dict(zip(titles, ranks_of(models[name]), strict=True)) for name in models}
    assert examples
    for example in examples:
        assert example["expected"] == example["query"]
        for name in models:
            assert example[name]["rank"] == ranks[name][example["query"]]
            assert (example[name]["top"] == example["query"]) == (example[name]["rank"] == 1)
        assert example["teacher"]["top"] != example["student"]["top"]
    gaps = [abs(math.log(e["teacher"]["rank"] / e["student"]["rank"])) for e in examples]
    assert gaps == sorted(gaps, reverse=True)
    assert result["examples"] == []  # of a model and its copy


def test_the_student_stands_beside_its_twin_and_tfidf(
    sentence_teacher: Path, student: Path
) -> None:
    models = {"teacher": sentence_teacher, "student": student, "plain": sentence_teacher}
    beside = lineup(models, 5, student="student", twin="plain")
    found = evaluate_embeddings(beside, articles(), SETTINGS)
    own = np.array([1 / rank for rank in ranks_of(student)])
    twin = np.array([1 / rank for rank in ranks_of(sentence_teacher)])
    assert list(found["differences"]) == ["plain", "tfidf"]
    told = found["differences"]["plain"]
    assert (told["score"], told["metric"]) == ("retrieval.mrr", "mrr")
    assert told["difference"] == pytest.approx(own.mean() - twin.mean())
    # the bootstrap of the differences, drawn here
    drawn = np.random.default_rng(0).integers(0, COUNT, (4000, COUNT))
    bounds = np.percentile((own - twin)[drawn].mean(axis=1), [2.5, 97.5])
    assert told["interval"] == pytest.approx(bounds, abs=0.02)
    tfidf = found["references"]["tfidf"]["retrieval"]["mrr"]
    assert found["differences"]["tfidf"]["difference"] == pytest.approx(own.mean() - tfidf)
    # titles are the first words of their texts, which untrained models can't tell
    assert tfidf > own.mean()
    assert "student does not beat TF-IDF (MRR)" in found["findings"]


def test_the_student_is_the_one_named_or_the_last(
    result: dict[str, Any], sentence_teacher: Path, student: Path
) -> None:
    models = {"student": student, "copy": sentence_teacher, "teacher": sentence_teacher}
    named = evaluate_embeddings(lineup(models, 5, student="student"), articles(), SETTINGS)
    alone = {"student": student, "teacher": sentence_teacher}
    last = evaluate_embeddings(lineup(alone, 5), articles(), SETTINGS)
    assert named["examples"] == last["examples"] != []
    assert named["softened"] == last["softened"]
    assert result["examples"] == []  # the last of the three is the teacher's copy
    assert result["softened"]["student"]["1"] == result["softened"]["temperatures"]["1"]
    assert named["models"] == result["models"]


def test_without_queries_and_labels_there_is_only_similarity(
    sentence_teacher: Path, student: Path
) -> None:
    records = [Record({"text": body}, "x") for body in column("body")]
    models = {"teacher": sentence_teacher, "student": student}
    found = evaluate_embeddings(lineup(models), records, Evaluate())
    assert set(found["models"]["student"]) == {"similarity", "hidden"}
    assert found["references"] == {"tfidf": {}}
    assert (found["retention"], found["intervals"]) == ({}, {})
    assert (found["softened"], found["examples"]) == (None, [])


def test_a_single_topic_is_not_probed(sentence_teacher: Path) -> None:
    records = [record(i, r.columns["title"], r.columns["body"]) for i, r in enumerate(articles())]
    found = evaluate_embeddings(lineup({"teacher": sentence_teacher}), records, SETTINGS)
    assert set(found["models"]["teacher"]) == {"retrieval", "similarity", "hidden"}


def test_another_width_has_no_hidden_cosine(sentence_teacher: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    BertModel(tiny_config(layers=1, hidden_size=16)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    models = {"teacher": sentence_teacher, "narrow": tmp_path}
    scores = evaluate_embeddings(lineup(models), articles(), SETTINGS)["models"]
    assert scores["narrow"]["hidden"] == {}
    assert -1 <= scores["narrow"]["similarity"]["pearson"] < 1


def test_progress_only_grows(sentence_teacher: Path, student: Path) -> None:
    seen: list[float] = []
    models = {"teacher": sentence_teacher, "student": student}
    evaluate_embeddings(lineup(models), articles(), SETTINGS, seen.append)
    assert seen == sorted(seen)
    assert 0 < seen[0] < 0.9 < seen[-1] <= 1


# --- records --------------------------------------------------------------------------------------


def test_duplicates_are_left_out(sentence_teacher: Path) -> None:
    """A passage that occurs twice, white space aside, has one right question: its first."""
    again = articles()[:3]
    extra = [
        record(50, "another title", again[0].columns["body"]),
        record(51, again[1].columns["title"], f"  {again[1].columns['body']}\n"),
        record(52, "of nothing", " "),
    ]
    models = {"teacher": sentence_teacher}
    found = evaluate_embeddings(lineup(models), [*articles(), *extra], SETTINGS)
    assert found == evaluate_embeddings(lineup(models), articles(), SETTINGS)
    assert found["records"] == COUNT


def test_max_records_takes_the_first(sentence_teacher: Path) -> None:
    models = {"teacher": sentence_teacher}
    settings = SETTINGS.model_copy(update={"max_records": 12})
    found = evaluate_embeddings(lineup(models), articles(), settings)
    assert found == evaluate_embeddings(lineup(models), articles()[:12], SETTINGS)


def test_max_length_cuts_texts(sentence_teacher: Path) -> None:
    """A limit of 8 tokens leaves six words, which are each body's title."""
    models = {"teacher": sentence_teacher}
    found = evaluate_embeddings(
        lineup(models), articles(), Evaluate(query="title", passage="body", max_length=8)
    )
    assert found["models"]["teacher"]["retrieval"] == {"mrr": 1.0, "recall_at_1": 1.0}
    uncut = evaluate_embeddings(lineup(models), articles(), SETTINGS)
    assert uncut["models"]["teacher"]["retrieval"]["mrr"] < 1


def refused(records: list[Record], settings: Evaluate, message: str) -> None:
    """By the check before training, and by the evaluation itself before it opens a model."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_records(records, settings)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        evaluate_embeddings(lineup({"teacher": Path("nowhere")}), records, settings)


def test_too_few_records_are_refused(sentence_teacher: Path) -> None:
    message = (
        "corpus.heldout: only 9 distinct records are held out; an evaluation needs at least 10. "
        "Raise corpus.heldout, or set corpus.heldout_sources."
    )
    refused([*articles(9), *articles(9)], SETTINGS, message)
    refused(articles(24), SETTINGS.model_copy(update={"max_records": 9}), message)
    check_records(articles(10), SETTINGS)
    ten = evaluate_embeddings(lineup({"teacher": sentence_teacher}), articles(10), SETTINGS)
    assert ten["records"] == 10


@pytest.mark.parametrize(
    ("key", "missing"), [("query", "title"), ("passage", "body"), ("label", "label")]
)
def test_a_record_without_a_column_is_named(key: str, missing: str) -> None:
    """A null is left out of a record's columns when it is read."""
    records = articles()
    check_records(records, SETTINGS)
    del records[4].columns[missing]
    left = ", ".join(records[4].columns)
    message = (
        f"text.csv:6: the {key} column '{missing}' is null or missing. Fill it in, or remove the "
        f"record. Its columns are {left}."
    )
    refused(records, SETTINGS, message)
    # what isn't looked at may be missing
    other = {key: "title" if key == "passage" else None}
    check_records(records, SETTINGS.model_copy(update=other))


def test_the_passage_is_the_text_where_nothing_else_is_said() -> None:
    records = [Record({"text": text}, f"text.txt:{i}") for i, text in enumerate(column("body"))]
    check_records(records, Evaluate())
    message = (
        "text.csv:2: the passage column 'text' is null or missing. Fill it in, or remove the "
        "record. Its columns are title, body, label."
    )
    refused([*records, *articles()], Evaluate(), message)


def test_labels_too_rare_for_a_probe_are_refused() -> None:
    records = [record(i, f"title {i}", f"body {i}", f"label {max(i - 9, 0)}") for i in range(12)]
    message = (
        "evaluate.label: the most frequent labels have 10 and 1 records, and a linear probe in 5 "
        "folds needs 5 records of one label and 2 of another. Hold out more text, or remove "
        "evaluate.label."
    )
    refused(records, SETTINGS, message)
