"""A teacher's kept answers: the same losses and gradients as live, and never those of another."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_labels import LABELS, examples, write_model

from potstill.data import Batch, Examples, collate, tokenize_corpus
from potstill.models import LoadedModel, Signals, load_model
from potstill.models.signals import Readout
from potstill.pipeline import run
from potstill.recipe import (
    Corpus,
    Distill,
    GoldMse,
    HardTargets,
    HiddenCosine,
    InBatch,
    LogitsMse,
    Objective,
    Relations,
    SoftTargets,
    Task,
    Training,
    VectorMse,
)
from potstill.tasks.heads import Reading
from potstill.training import Trainee, teacher_cache
from potstill.training.teacher_cache import (
    Answers,
    Asking,
    reads_vectors,
    teacher_answers,
    why_live,
)
from potstill.training.teachers import CachedTeacher, LiveTeacher
from same_runs import losses, recipe

LOSSES: dict[Task, list[Objective]] = {
    Task.CLASSIFICATION: [
        *(SoftTargets(weight=5.0), HardTargets(), LogitsMse()),
        *(HiddenCosine(of="pooled"), VectorMse()),
    ],
    Task.MULTI_LABEL: [SoftTargets(), HardTargets(target="teacher"), HiddenCosine(of="pooled")],
    Task.REGRESSION: [LogitsMse(), GoldMse(), HiddenCosine(of="pooled")],
    Task.SENTENCE_SIMILARITY: [LogitsMse(), GoldMse(), HiddenCosine(of="pooled"), VectorMse()],
    Task.TOKEN_CLASSIFICATION: [SoftTargets(), HardTargets(target="teacher"), LogitsMse()],
}


def asked(folder: Path, task: Task, parts: list[Examples], cache: Path, **more: Any) -> Any:
    return teacher_answers(load_model(folder, task), folder, Asking(parts, True, **more), cache)


def batch_of(parts: list[Examples]) -> Batch:
    """Some of the last part, in another order than they are kept in."""
    return collate(parts[-1], np.array([4, 0, 7, 3, 5]), 0)


class Rounded(LiveTeacher):
    """A live teacher whose answers are rounded as kept ones are, and readable as logits."""

    def signals(self, batch: Batch, *_: Any) -> Signals:
        found = super().signals(batch)
        logits = found.logits()
        exact = not self.reading.task.has_distribution
        rounded = logits.float() if exact else logits.half().float()
        vectors = None if found.vectors_BD is None else found.vectors_BD.half().float()
        return Signals(
            found.hidden_BLD, rounded, Readout(torch.eye(rounded.shape[1])), vectors_BD=vectors
        )


def step(student: LoadedModel, teacher: Any, reading: Reading, batch: Batch) -> dict[str, Any]:
    """Losses and gradients of one step."""
    trainee = Trainee(student, [teacher], reading, chunk_size=3, seed=1)
    trainee.model.eval()
    trainee.zero_grad(set_to_none=True)
    total, sums = trainee(batch, {o.kind: o.weight for o in reading.objectives})
    total.backward()
    grads = {n: p.grad.clone() for n, p in trainee.named_parameters() if p.grad is not None}
    return {**sums, **grads, "total": total.detach()}


@pytest.mark.parametrize("task", list(LOSSES))
def test_live_and_cached_give_the_same_losses_and_gradients(task: Task, tmp_path: Path) -> None:
    """Bit by bit where the live answers are rounded alike; else to float16's precision.

    The teacher computes in float64, so that padding can't tip a value to the other side.
    """
    folder = write_model(task, tmp_path / "teacher")
    student = load_model(write_model(task, tmp_path / "student", 1, layers=1), task)
    parts = [examples(task, 9), examples(task, 8, seed=1)]
    parts[1] = replace(parts[1], numbered_from=9)
    loaded = [load_model(folder, task) for _ in range(3)]
    for each in loaded:
        each.model.double()
    vectors = task != "token_classification"
    answers = teacher_answers(loaded[0], folder, Asking(parts, vectors), tmp_path / "cache")
    assert len(answers) == 17
    reading = Reading.of(task, LOSSES[task], InBatch(), 5)
    batch = batch_of(parts)
    cached = step(student, CachedTeacher(loaded[0], answers, reading), reading, batch)
    rounded = step(student, Rounded(loaded[1], reading), reading, batch)
    assert cached.keys() == rounded.keys()
    for name, value in rounded.items():
        assert torch.equal(cached[name], value), name
    live = step(student, LiveTeacher(loaded[2], reading), reading, batch)
    for name, value in live.items():
        torch.testing.assert_close(cached[name], value.to(cached[name].dtype), rtol=5e-3, atol=2e-3)
    assert float(cached["total"]) > 0.01


def test_the_answers_are_the_models_own(tmp_path: Path) -> None:
    """Of every example, one at a time, by its number."""
    folder = write_model("classification", tmp_path / "teacher")
    parts = [examples("classification", 5), examples("classification", 4, seed=1)]
    answers = asked(folder, "classification", parts, tmp_path / "cache")
    model = load_model(folder, "classification").model
    number = 0
    for part in parts:
        for index in range(len(part)):
            ids = torch.from_numpy(part[index].astype(np.int64))[None]
            expected = model(input_ids=ids).logits
            found = answers.rows(np.array([number]))
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
            number += 1


def test_rows_of_examples_that_have_one_or_none() -> None:
    """Sentences of one word, and of one that the tokenizer has no token for."""
    logits_RC = np.arange(6, dtype=np.float16).reshape(3, 2)
    answers = Answers(np.array([0, 1, 1, 2, 3, 3]), logits_RC)
    for numbers, rows in ([0, 1, 2], [0, 1]), ([3, 1, 0], [2, 0]), ([2, 4], [1]), ([1, 4], []):
        found = answers.rows(np.array(numbers))
        assert found.tolist() == logits_RC[rows].tolist(), numbers


def test_large_values_of_regression_keep_their_precision(tmp_path: Path) -> None:
    """float16 can't tell the years 2019 and 2020 apart by half a year, nor say 100,000."""
    folder = write_model("regression", tmp_path / "teacher")
    loaded = load_model(folder, "regression")
    bias: Any = loaded.model.classifier.bias
    with torch.no_grad():
        bias.fill_(100_000.25)
    parts = [examples("regression", 4)]
    answers = teacher_answers(loaded, folder, Asking(parts, False), tmp_path / "cache")
    batch = collate(parts[0], np.arange(4), 0)
    expected = loaded.model(batch.input_ids_BL, batch.attention_mask_BL).logits
    torch.testing.assert_close(answers.rows(np.arange(4)), expected, rtol=0, atol=0.02)


def test_answers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = write_model("classification", tmp_path / "teacher")
    loaded = load_model(folder, "classification")
    bias: Any = loaded.model.classifier.bias
    with torch.no_grad():
        bias[1] = 1e6
    asked = Asking([examples("classification", 4)], vectors=False)
    with pytest.raises(ValueError, match=r"not finite, or beyond 65504\. Set cache: false in"):
        teacher_answers(loaded, folder, asked, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def fail(*_: object) -> None:
    raise AssertionError("asked again")


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, list[Examples], Path]:
    folder = write_model("classification", tmp_path / "teacher")
    parts = [examples("classification", 9)]
    asked(folder, "classification", parts, tmp_path / "cache")
    return folder, parts, tmp_path / "cache"


def test_what_is_kept_is_not_asked_again(
    kept: tuple[Path, list[Examples], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, parts, cache = kept
    monkeypatch.setattr(teacher_cache, "_build", fail)
    answers = asked(folder, "classification", parts, cache)
    assert isinstance(answers.logits_RC, np.memmap)
    assert answers.logits_RC.dtype == np.float16
    # other texts, another cut (max_length), another tokenizer (other ids), other weights
    shorter = parts[0].chosen(np.arange(8))
    other_ids = replace(parts[0], ids=parts[0].ids + (parts[0].ids == 7))
    for changed in ([shorter], [other_ids], [*parts, shorter]):
        with pytest.raises(AssertionError, match="asked again"):
            asked(folder, "classification", changed, cache)
    write_model("classification", folder, seed=5)
    with pytest.raises(AssertionError, match="asked again"):
        asked(folder, "classification", parts, cache)


@pytest.mark.parametrize("name", ["logits.npy", "starts.npy", "vectors.npy", "meta.json"])
def test_a_flipped_byte_is_noticed(name: str, kept: tuple[Path, list[Examples], Path]) -> None:
    folder, parts, cache = kept
    (place,) = cache.iterdir()
    before = (place / name).read_bytes()
    damaged = bytearray(before)
    damaged[-3] ^= 1
    (place / name).unlink()  # not in place: the file may be mapped
    (place / name).write_bytes(damaged)
    said: list[str] = []
    asked(folder, "classification", parts, cache, say=said.append)
    assert said == [
        f"{place}: the cache of {folder}'s outputs is damaged ({name} has changed). It is "
        f"built again.",
        f"asking {folder} about 9 examples, once for all epochs",
    ]
    assert (place / name).read_bytes() == before
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut short", "gone"])
@pytest.mark.parametrize("name", ["logits.npy", "vectors.npy", "meta.json"])
def test_a_file_that_is_not_whole_is_noticed(
    name: str, damage: str, kept: tuple[Path, list[Examples], Path]
) -> None:
    """Beside what a process left that was killed while it wrote another one."""
    folder, parts, cache = kept
    (place,) = cache.iterdir()
    before = (place / name).read_bytes()
    half = cache / f".{place.name}-0badcafe"
    half.mkdir()
    (half / name).write_bytes(before[: len(before) // 2])
    (place / name).unlink()
    if damage == "cut short":
        (place / name).write_bytes(before[:-8])
    said: list[str] = []
    asked(folder, "classification", parts, cache, say=said.append)
    what = "is missing" if damage == "gone" else "has changed"
    assert f"outputs is damaged ({name} {what}). It is built again." in said[0]
    assert (place / name).read_bytes() == before


def test_a_cache_under_another_ones_name_is_not_used(
    kept: tuple[Path, list[Examples], Path], tmp_path: Path
) -> None:
    folder, parts, cache = kept
    (place,) = cache.iterdir()
    write_model("classification", folder, seed=5)
    said: list[str] = []
    fresh = asked(folder, "classification", parts, cache)
    (other,) = (path for path in cache.iterdir() if path != place)
    aside = tmp_path / "aside"
    other.rename(aside)
    place.rename(other)  # the answers of the former weights
    again = asked(folder, "classification", parts, cache, say=said.append)
    assert np.array_equal(fresh.logits_RC, again.logits_RC)
    assert "outputs is damaged (it holds other outputs). It is built again." in said[0]
    assert os.path.samefile(other.parent, cache)


def test_a_batch_of_no_examples_is_answered_with_zeros(
    kept: tuple[Path, list[Examples], Path],
) -> None:
    folder, parts, cache = kept
    answers = asked(folder, "classification", parts, cache)
    reading = Reading.of(Task.CLASSIFICATION, [SoftTargets()], InBatch(), 3)
    teacher = CachedTeacher(load_model(folder, "classification"), answers, reading)
    batch = collate(parts[0], np.arange(3), 0)
    found = teacher.signals(replace(batch, numbers_B=None))
    assert found.features_KD is not None
    assert found.features_KD.tolist() == [[0.0] * LABELS] * 3
    assert next(teacher.loaded.model.parameters()).is_meta  # its weights are given up


# --- which stages -------------------------------------------------------------------------------


def stage(*objectives: Objective, **more: Any) -> Distill:
    return Distill(objectives=list(objectives), training=Training(epochs=3), **more)


def test_where_answers_are_kept() -> None:
    pooled = stage(SoftTargets(), HiddenCosine(of="pooled"))
    assert why_live(pooled, Task.CLASSIFICATION, 3.0) is None
    assert why_live(pooled, Task.CLASSIFICATION, 1.0) == "no example is read twice"
    triple = stage(SoftTargets(), HiddenCosine())
    assert why_live(triple, Task.SENTENCE_EMBEDDING, 1.5) is None
    assert why_live(triple, Task.SENTENCE_EMBEDDING, 1.4) == "few texts are read twice"
    inside = stage(SoftTargets(), HiddenCosine(), Relations())
    said = why_live(inside, Task.SENTENCE_EMBEDDING, 3.0)
    assert said == "relations reads the hidden states of tokens"
    always = stage(SoftTargets(), cache=True)
    assert why_live(always, Task.CLASSIFICATION, 0.5) is None
    assert why_live(stage(SoftTargets(), cache=False), Task.CLASSIFICATION, 3.0) == "cache is false"
    triple = stage(SoftTargets(), HiddenCosine())
    assert (
        why_live(triple, Task.CLASSIFICATION, 3.0)
        == "hidden_cosine reads the hidden states of tokens"
    )
    without = stage(SoftTargets(), Relations(weight=0))
    assert why_live(without, Task.CLASSIFICATION, 3.0) is None
    said = why_live(pooled, Task.QUESTION_ANSWERING, 3.0)
    assert said == "outputs for question_answering are not cached"
    assert reads_vectors([VectorMse()])
    assert reads_vectors([HiddenCosine(of="pooled")])
    assert not reads_vectors([SoftTargets(), HiddenCosine(), VectorMse(weight=0)])


def test_a_cache_that_cannot_serve_an_objective_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cache: true caches .* relations reads the"):
        stage(SoftTargets(), Relations(), cache=True)


# --- a corpus ------------------------------------------------------------------------------------


def test_answers_about_a_corpus_are_those_of_the_live_teacher(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    """Vectors and the hidden states of all tokens, of both sides, to float16's precision."""
    loaded = [load_model(sentence_teacher, Task.SENTENCE_EMBEDDING) for _ in range(2)]
    settings = Corpus(sources=[str(text_file)], min_length=4, max_length=24, heldout=0.2)
    found = tokenize_corpus(settings, loaded[0].tokenizer, tmp_path / "tokens", 1)
    sides = [found.train, replace(found.heldout, numbered_from=len(found.train))]
    asked = Asking(sides, vectors=True, hidden=True)
    answers = teacher_answers(loaded[0], sentence_teacher, asked, tmp_path / "cache")
    objectives = [SoftTargets(), HiddenCosine(weight=3.0), VectorMse()]
    reading = Reading.of(Task.SENTENCE_EMBEDDING, objectives, InBatch(scale=5.0), 5)
    student = load_model(sentence_teacher, Task.SENTENCE_EMBEDDING)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
            )
    cached, live = CachedTeacher(loaded[0], answers, reading), LiveTeacher(loaded[1], reading)
    for side in sides:
        batch = collate(side, np.array([4, 0, 7, 3, 5]), 0)
        one, other = cached.signals(batch), live.signals(batch)
        real_BL = batch.attention_mask_BL.bool()
        torch.testing.assert_close(
            one.hidden_BLD[real_BL], other.hidden_BLD[real_BL], rtol=1e-3, atol=1e-3
        )
        assert not one.hidden_BLD[~real_BL].any()
        torch.testing.assert_close(one.logits(), other.logits(), rtol=2e-3, atol=5e-3)
        steps = [step(student, teacher, reading, batch) for teacher in (cached, live)]
        for name, value in steps[1].items():
            torch.testing.assert_close(steps[0][name], value, rtol=1e-2, atol=5e-3)
        assert float(steps[1]["total"]) > 0.01


def test_a_corpus_is_asked_about_once_where_it_is_read_twice(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    """And its losses are those of a teacher that is asked for every batch."""
    runs = {}
    for cache in ("auto", False):
        plan = recipe(sentence_teacher, text_file, "sentence_embedding", max_steps=80, batch_size=9)
        stage = plan.stages[1].model_copy(update={"cache": cache})
        plan = plan.model_copy(update={"stages": [plan.stages[0], stage]})
        runs[cache] = run(plan, output=tmp_path / str(cache))
    told = [
        json.loads((folder / "stages/02-distill/result.json").read_text())["teachers"]
        for folder in runs.values()
    ]
    assert told == ["cached", "live"]
    cached, live = (losses(folder) for folder in runs.values())
    assert len(cached) == 80
    for number, line in cached.items():
        assert line["loss"] == pytest.approx(live[number]["loss"], rel=2e-2)


def test_hidden_states_that_would_fill_the_disk_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        teacher_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=10 * 10**9)
    )
    assert teacher_cache.why_too_large(5 * 10**9, tmp_path / "none/yet") is None
    said = teacher_cache.why_too_large(6 * 10**9, tmp_path / "none/yet")
    assert said == "its hidden states would take 6.0 GB, and 10.0 GB are free"
