"""Whose tokens a run's text is in."""

from __future__ import annotations

import json
import shutil
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest

import potstill
from conftest import sentences
from potstill.pipeline import Silent
from potstill.pipeline.context import Context, TokenizedText
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


def test_a_model_that_took_anothers_name_has_text_in_its_own_tokens(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    """The text was tokenized for the former one already."""
    context = context_of(sentence_teacher, text_file, tmp_path)
    first = context.text_for("teacher")
    before = first.tokenizer.get_vocab()
    assert context.text_for("teacher") is first
    context.models["teacher"] = trimmed(sentence_teacher, tmp_path)
    after = context.text_for("teacher").tokenizer.get_vocab()
    assert len(after) < len(before)
    assert context.text_for("teacher").corpus.train.token_counts.shape == (len(after),)


def test_a_damaged_token_cache_is_said(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    before = context_of(sentence_teacher, text_file, tmp_path).text_for("teacher").corpus.train
    first = before[0].tolist()
    (path,) = tmp_path.glob("cache/*/train/tokens.bin")
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.unlink()  # not in place: the file is mapped
    path.write_bytes(content)
    context = replace(context_of(sentence_teacher, text_file, tmp_path), reporter=Listening())
    assert context.text_for("teacher").corpus.train[0].tolist() == first
    [told] = [line for line in context.reporter.said if "damaged" in line]
    assert told.startswith(f"{path.parent.parent}: the token cache is damaged")


def test_text_is_tokenized_once_for_models_of_one_vocabulary(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    context = context_of(sentence_teacher, text_file, tmp_path)
    small = trimmed(sentence_teacher, tmp_path)
    context.models.update({"student": small, "student.2": small, "other": sentence_teacher})
    text = context.text_for("student")
    assert context.text_for("student.2") is text
    assert context.text_for("student") is text
    own = context.text_for("other")
    assert own is not text
    assert own is context.text_for("teacher")
    assert list(context.texts.values()) == [own, text]


def test_the_teachers_tokenizer_serves_all_models_of_its_vocabulary(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    """Two tokenizers of one vocabulary may still differ, so whoever asks first must not decide."""
    context = context_of(sentence_teacher, text_file, tmp_path)
    copied = tmp_path / "copied"
    shutil.copytree(sentence_teacher, copied)
    tree = json.loads((copied / "tokenizer.json").read_text())
    tree["normalizer"] = {"type": "NFC"}
    (copied / "tokenizer.json").write_text(json.dumps(tree))
    context.models["copied"] = copied
    used = json.loads(context.text_for("copied").tokenizer.backend_tokenizer.to_str())
    assert used["normalizer"] != tree["normalizer"]


def test_a_context_and_its_texts_are_frozen(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    """What one stage set in it, the next one would find."""
    context = context_of(sentence_teacher, text_file, tmp_path)
    text = context.text_for("teacher")
    for owner, kind in ((context, Context), (text, TokenizedText)):
        for name in (each.name for each in fields(kind)):
            with pytest.raises(FrozenInstanceError):
                setattr(owner, name, None)


def test_a_copy_of_a_context_shares_no_text(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    context = context_of(sentence_teacher, text_file, tmp_path)
    text = context.text_for("teacher")
    assert replace(context, seed=2).text_for("teacher") is not text
    assert context.text_for("teacher") is text
