"""Whose tokens a run's text is cut into."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest

import potstill
from conftest import sentences
from potstill.pipeline import Silent
from potstill.pipeline.context import Context
from potstill.recipe import Corpus, Task


class Listening(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def context_of(teacher: Path, text: Path, folder: Path) -> Context:
    settings = {"sources": str(text), "max_length": 40, "min_length": 4, "heldout": 0.2}
    return Context(
        task=Task.SENTENCE_EMBEDDING,
        seed=1,
        text_settings=Corpus.model_validate(settings),
        run=folder / "run",
        cache=folder / "cache",
        models={"teacher": teacher},
        reporter=Silent(),
    )


def trimmed(teacher: Path, folder: Path) -> Path:
    text = folder / "little.txt"
    text.write_text("\n".join(sentences(12)), encoding="utf-8")
    return potstill.trim_vocabulary(teacher, str(text), folder / "trimmed")


def test_a_model_that_took_anothers_name_is_cut_in_its_own_tokens(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    """The text was cut for the former one already."""
    context = context_of(sentence_teacher, text_file, tmp_path)
    before = context.tokenizer.get_vocab()
    assert context.cut_as("teacher") is context
    context.models["teacher"] = trimmed(sentence_teacher, tmp_path)
    after = context.cut_as("teacher").tokenizer.get_vocab()
    assert len(after) < len(before)
    assert context.cut_as("teacher").corpus.train.token_counts.shape == (len(after),)


def test_a_damaged_token_cache_is_said(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    before = context_of(sentence_teacher, text_file, tmp_path).corpus.train
    first = before[0].tolist()
    (path,) = tmp_path.glob("cache/*/train/tokens.bin")
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.unlink()  # not in place: the file is mapped
    path.write_bytes(content)
    context = replace(context_of(sentence_teacher, text_file, tmp_path), reporter=Listening())
    assert context.corpus.train[0].tolist() == first
    [told] = [line for line in context.reporter.said if "damaged" in line]
    assert told.startswith(f"{path.parent.parent}: the token cache is damaged")


def test_text_is_cut_once_for_models_of_one_vocabulary(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    context = context_of(sentence_teacher, text_file, tmp_path)
    small = trimmed(sentence_teacher, tmp_path)
    context.models.update({"student": small, "student.2": small, "other": sentence_teacher})
    cut = context.cut_as("student")
    assert cut is not context
    assert context.cut_as("student.2") is cut
    assert cut.cut_as("student") is cut
    assert context.cut_as("other") is context
    assert cut.cut_as("other") is context


def test_copies_can_not_drift_apart(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    """A copy is made once and kept: what one stage set in it, the next one would find."""
    context = context_of(sentence_teacher, text_file, tmp_path)
    context.models["small"] = trimmed(sentence_teacher, tmp_path)
    cut = context.cut_as("small")
    context.models["later"] = sentence_teacher
    assert cut.models["later"] == sentence_teacher
    for name in (each.name for each in fields(Context)):
        with pytest.raises(FrozenInstanceError):
            setattr(cut, name, None)
