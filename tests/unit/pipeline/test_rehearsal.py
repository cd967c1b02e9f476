from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from conftest import sentences, tiny_config
from potstill.pipeline.outlook import Outline
from potstill.pipeline.rehearsal import rehearse
from potstill.recipe import Recipe
from potstill.training import log
from tiny_families import family_model
from tiny_runs import tiny_teacher
from tiny_tokenizers import family_tokenizer

MAKE = {"kind": "make_student"}
FINETUNE = {"kind": "finetune", "training": {"max_steps": 1}}
DISTILL = {
    "kind": "distill",
    "objectives": [{"kind": "soft_targets"}],
    "training": {"max_steps": 1},
}


def outlines(
    teacher: Path, text: Path, *stages: dict[str, Any], task: str = "masked_lm", **corpus: Any
) -> list[Outline]:
    tree = {
        "name": "rehearsal",
        "task": task,
        "teacher": str(teacher),
        "corpus": {"sources": [str(text)], "max_length": 40, "min_length": 4, **corpus},
        "stages": list(stages),
    }
    return rehearse(Recipe.model_validate(tree), {"teacher": teacher})


def test_each_stage_gets_the_models_it_will_have(masked_lm_teacher: Path, text_file: Path) -> None:
    made, distilled, evaluated = outlines(
        masked_lm_teacher, text_file, MAKE, DISTILL, {"kind": "evaluate"}
    )
    assert made.model is distilled.model
    assert made.teachers == distilled.teachers
    assert made.model is not None
    assert made.model.model.config.model_type == "distilbert"
    assert made.model.model.config.num_hidden_layers == 2
    assert {p.device.type for p in made.model.model.parameters()} == {"meta"}
    assert (evaluated.model, evaluated.teachers) == (None, ())


def test_a_headless_teacher_is_taken_once_it_is_finetuned(
    sentence_teacher: Path, text_file: Path
) -> None:
    with pytest.raises(ValueError, match="no trained masked-LM head"):
        outlines(sentence_teacher, text_file, MAKE)
    made = outlines(sentence_teacher, text_file, FINETUNE, MAKE)[1]
    assert made.model is not None
    assert type(made.model.model).__name__ == "DistilBertForMaskedLM"
    # under another name, what is called the teacher still has no head
    named = {**FINETUNE, "writes": "tuned"}
    outlines(
        sentence_teacher,
        text_file,
        named,
        {"kind": "evaluate", "baseline": "tuned", "models": ["tuned"]},
    )
    for chosen in ({"baseline": "teacher"}, {"baseline": "tuned"}):
        with pytest.raises(ValueError, match="no trained masked-LM head"):
            outlines(sentence_teacher, text_file, named, {"kind": "evaluate", **chosen})


def test_text_that_a_benchmark_times_is_looked_at_before_anything_starts(
    masked_lm_teacher: Path, text_file: Path
) -> None:
    timed: dict[str, Any] = {"kind": "benchmark", "models": [], "lengths": [16]}
    timed["pass_over"] = {"sources": str(text_file)}
    outlines(masked_lm_teacher, text_file, timed)
    timed["pass_over"] = {"sources": str(text_file), "columns": ["s1"]}
    with pytest.raises(ValueError, match=r"text\.txt:1: no column 's1'; there are: text"):
        outlines(masked_lm_teacher, text_file, timed)


def test_layers_out_of_range_show_before_a_long_finetuning(
    sentence_teacher: Path, text_file: Path
) -> None:
    with pytest.raises(ValueError, match="layers: 7 is out of range"):
        outlines(sentence_teacher, text_file, FINETUNE, {**MAKE, "layers": [0, 7]})


def test_a_pair_teacher_is_not_warned_of_twice(
    masked_lm_teacher: Path, text_file: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (made,) = outlines(masked_lm_teacher, text_file, {**MAKE, "pairs": True})
    assert made.model is not None
    assert made.model.model.config.model_type == "bert"
    assert [w for w in recwarn if issubclass(w.category, UserWarning)] == []


@pytest.mark.parametrize("key", ["passage", "query", "label"])
def test_columns_of_evaluation(sentence_teacher: Path, tmp_path: Path, key: str) -> None:
    path = tmp_path / "text.csv"
    path.write_text("text,title\nmalt and oak,malt\n")

    def check(column: str, **corpus: Any) -> None:
        stage = {"kind": "evaluate", key: column}
        outlines(sentence_teacher, path, MAKE, stage, task="sentence_embedding", **corpus)

    check("title")
    with pytest.raises(
        ValueError, match=rf"^stage 2 \(evaluate\): {key}: no column is called 'titel'\. Name one"
    ):
        check("titel")
    other = tmp_path / "heldout.csv"
    other.write_text("text\nmalt and oak\n")
    with pytest.raises(
        ValueError, match=rf"{key}: no column is called 'title'\. Name one of text\.$"
    ):
        check("title", heldout_sources=[str(other)])  # scores are on that text


def test_what_several_processes_need(
    sentence_teacher: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    stage = {**DISTILL, "training": {"max_steps": 1, "batch_size": 32}, "in_batch": {"group": 32}}
    with pytest.raises(ValueError, match=r"micro_batch_size to at most 8 and in_batch\.group"):
        outlines(sentence_teacher, text_file, MAKE, stage, task="sentence_embedding")


def test_a_tracker_that_is_not_installed(
    masked_lm_teacher: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "get_available_trackers", lambda: [])
    stage = {**DISTILL, "training": {"max_steps": 1, "trackers": ["mlflow"]}}
    with pytest.raises(ValueError, match="mlflow is not installed"):
        outlines(masked_lm_teacher, text_file, MAKE, stage)


def test_a_family_without_gradient_checkpointing(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    training = {"max_steps": 1, "gradient_checkpointing": True}
    outlines(masked_lm_teacher, text_file, MAKE, {**DISTILL, "training": training})
    tokenizer = family_tokenizer("mpnet")
    size = max(tokenizer.get_vocab().values()) + 1
    family_model("mpnet", "masked_lm", layers=2, vocab_size=size).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for stage in ({**DISTILL, "training": training}, {**FINETUNE, "training": training}):
        with pytest.raises(ValueError, match=r"gradient_checkpointing: MPNetForMaskedLM .*Omit it"):
            outlines(tmp_path, text_file, MAKE, stage)


def test_the_last_text_column_is_the_passage(sentence_teacher: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.csv"
    path.write_text("title,body\nmalt,malt and oak\n")
    stage = {"kind": "evaluate", "query": "title"}
    columns = {"task": "sentence_embedding", "columns": ["title", "body"]}
    outlines(sentence_teacher, path, MAKE, stage, **columns)


def test_a_group_that_no_record_has(sentence_teacher: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.csv"
    path.write_text("text,title\nmalt and oak,malt\n")
    outlines(sentence_teacher, path, MAKE, task="sentence_embedding", group_by="title")
    with pytest.raises(ValueError, match="group_by: no column 'titel'"):
        outlines(sentence_teacher, path, MAKE, task="sentence_embedding", group_by="titel")


def test_a_column_that_is_null_at_first(sentence_teacher: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "malt", "topic": null}\n{"text": "oak", "topic": "wood"}\n')
    stage = {"kind": "evaluate", "label": "topic"}
    outlines(sentence_teacher, path, MAKE, stage, task="sentence_embedding")


def test_nothing_held_out(masked_lm_teacher: Path, text_file: Path) -> None:
    with pytest.raises(ValueError, match=r"^stage 2 \(evaluate\): no text is held out"):
        outlines(masked_lm_teacher, text_file, MAKE, {"kind": "evaluate"}, heldout=0.0)
    own = [str(text_file)]
    outlines(
        masked_lm_teacher, text_file, MAKE, {"kind": "evaluate"}, heldout=0, heldout_sources=own
    )
    with pytest.raises(ValueError, match=r"nowhere\.txt: the file was not found"):
        outlines(masked_lm_teacher, text_file, MAKE, heldout_sources=["nowhere.txt"])


def test_lengths_beyond_the_positions(masked_lm_teacher: Path, text_file: Path) -> None:
    teacher = re.escape(str(masked_lm_teacher))
    positions = rf"corpus\.max_length: 65 tokens .* sequence length of {teacher}, 64\."
    with pytest.raises(ValueError, match=positions):  # of what the user gave, not of "student"
        outlines(masked_lm_teacher, text_file, MAKE, DISTILL, max_length=65)
    outlines(masked_lm_teacher, text_file, MAKE, DISTILL, max_length=64)
    passed = {"sources": str(text_file), "max_length": 65}
    for key, value in (("lengths", [64, 65]), ("throughput_length", 65), ("pass_over", passed)):
        benchmark = {"kind": "benchmark", "lengths": [64], key: value}
        with pytest.raises(ValueError, match=rf"benchmark\.{key}.*: 65 tokens .*, 64\."):
            outlines(masked_lm_teacher, text_file, MAKE, benchmark)


def test_a_report_without_matplotlib(
    masked_lm_teacher: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outlines(masked_lm_teacher, text_file, MAKE, {"kind": "report"})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install potstill\[report\]"):
        outlines(masked_lm_teacher, text_file, MAKE, {"kind": "report"})


@pytest.fixture
def wordy_teacher(tmp_path: Path) -> Path:
    """Of a word-level tokenizer with a mask token: its words can't be told from its tokens."""
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "[MASK]": 2, "malt": 3, "oak": 4}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")),
        unk_token="[UNK]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )
    torch.manual_seed(0)
    BertForMaskedLM(tiny_config(vocab_size=5)).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def test_masks_that_the_tokenizer_does_not_give(wordy_teacher: Path, text_file: Path) -> None:
    outlines(wordy_teacher, text_file, FINETUNE)
    with pytest.raises(ValueError, match=r"masking\.whole_word: not available"):
        outlines(wordy_teacher, text_file, {**FINETUNE, "masking": {"whole_word": True}})


@pytest.mark.parametrize("kind", ["finetune", "distill"])
def test_a_head_whose_labels_are_in_another_order(kind: str, tmp_path: Path) -> None:
    """Trained as the run's labels it would answer with its own names: late for early."""
    teacher = tiny_teacher(tmp_path / "teacher", "classification")
    text = tmp_path / "train.tsv"
    lines = [f"{line}\t{number % 3}" for number, line in enumerate(sentences(30))]
    text.write_text("\n".join(["text\tlabel", *lines]), encoding="utf-8")
    stage = {**(FINETUNE if kind == "finetune" else DISTILL), "model": "small"}
    tree = {
        "name": "labels",
        "task": "classification",
        "teacher": str(teacher),
        "data": {"train": [str(text)], "max_length": 40},
        "stages": [{**stage, "writes": "student"}],
    }

    def rehearsed(names: list[str]) -> None:
        small = tiny_teacher(tmp_path / "small", "classification", seed=1)
        model = BertForSequenceClassification.from_pretrained(small)
        model.config.id2label = dict(enumerate(names))
        model.save_pretrained(small)
        recipe = Recipe.model_validate({**tree, "teachers": {"small": str(small)}})
        rehearse(recipe, {"teacher": teacher, "small": small})

    names = ["early", "late", "<b>never</b>"]
    rehearsed(names)
    for other in (["late", "early", "<b>never</b>"], ["a", "b", "c"], names[:2]):
        with pytest.raises(ValueError, match="small: the labels of its head are"):
            rehearsed(other)
