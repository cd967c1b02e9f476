"""A run with a cached teacher: the losses of a live one, however it is stopped or shared out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import BertForSequenceClassification

import same_runs
from conftest import WORDS, sentences, tiny_config, tiny_tokenizer
from potstill import errors
from potstill.pipeline import run
from potstill.recipe import Recipe
from potstill.training import loop, teacher_cache
from same_runs import LAUNCHERS, launched

OBJECTIVES = [
    {"kind": "soft_targets", "weight": 5.0},
    {"kind": "hard_targets", "weight": 2.0},
    {"kind": "hidden_cosine", "of": "pooled"},
]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    config = tiny_config(2, initializer_range=0.2)
    config.id2label, config.label2id = {0: "early", 1: "late"}, {"early": 0, "late": 1}
    BertForSequenceClassification(config).save_pretrained(tmp_path / "teacher")
    tiny_tokenizer().save_pretrained(tmp_path / "teacher")
    texts = sentences(60)
    labels = ["early" if WORDS.index(text.split()[0]) < 15 else "late" for text in texts]
    lines = [f"{text}\t{label}" for text, label in zip(texts, labels, strict=True)]
    (tmp_path / "train.tsv").write_text("\n".join(["text\tlabel", *lines[:40]]) + "\n")
    (tmp_path / "more.txt").write_text("\n".join(texts[40:]) + "\n")
    return {
        "name": "cached",
        "task": "classification",
        "teacher": str(tmp_path / "teacher"),
        "data": {
            "train": str(tmp_path / "train.tsv"),
            "unlabelled": str(tmp_path / "more.txt"),
            "heldout": 0.2,
            "max_length": 32,
            "labels": ["early", "late"],
        },
        "stages": [
            {"kind": "make_student"},
            {
                "kind": "distill",
                "objectives": OBJECTIVES,
                "training": {
                    "epochs": 2,
                    **{"batch_size": 16, "micro_batch_size": 8, "log_every": 1, "dropout": False},
                    "evaluate_every": 1,
                    "precision": "fp32",  # of bf16 nobody could tell rounding from a mistake
                },
            },
        ],
    }


def lines(folder: Path, event: str) -> dict[int, dict[str, Any]]:
    text = (folder / "stages/02-distill/log.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    return {line["step"]: line for line in found if line["event"] == event}


def how(folder: Path) -> str:
    return str(json.loads((folder / "stages/02-distill/result.json").read_text())["teachers"])


def assert_same_run(one: Path, other: Path, rel: float) -> None:
    for event in ("train", "evaluate"):
        a, b = lines(one, event), lines(other, event)
        assert a.keys() == b.keys()
        assert len(a) >= 6
        for step, line in a.items():
            assert b[step]["components"] == pytest.approx(line["components"], rel=rel, abs=1e-6)


def caches(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "teachers").iterdir())


def test_cached_is_live(tree: dict[str, Any], tmp_path: Path) -> None:
    """To the precision of float16, at every step and evaluation, text without labels included."""
    cached = run(Recipe.model_validate(tree), output=tmp_path / "cached")
    assert how(cached) == "cached"
    assert len(caches(tmp_path)) == 1
    tree["stages"][1]["cache"] = False
    live = run(Recipe.model_validate(tree), output=tmp_path / "live")
    assert how(live) == "live"
    assert_same_run(live, cached, rel=5e-3)


def test_a_stopped_run_goes_on_without_asking(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(Recipe.model_validate(tree), output=tmp_path / "whole")
    step = loop._Loop._step

    def third(self: Any, number: int, *rest: Any) -> None:
        step(self, number, *rest)
        if number == 2:
            os.kill(os.getpid(), 15)

    monkeypatch.setattr(loop._Loop, "_step", third)

    def again(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(teacher_cache, "_build", again)
    with pytest.raises(errors.Interrupted, match="stopped at step 3"):
        run(Recipe.model_validate(tree), output=tmp_path / "parts")
    monkeypatch.setattr(loop._Loop, "_step", step)
    parts = run(Recipe.model_validate(tree), output=tmp_path / "parts")
    weights = [load_file(f / "model" / "model.safetensors") for f in (whole, parts)]
    for name, value in weights[0].items():
        assert torch.equal(weights[1][name], value), name


def test_two_processes_ask_once(tree: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    plan = Recipe.model_validate(tree)
    path.write_text(yaml.safe_dump(plan.model_dump(mode="json")))
    output = launched(LAUNCHERS[0], path, tmp_path / "two")
    (place,) = caches(tmp_path)
    made = place.stat().st_mtime_ns
    one = run(plan, output=tmp_path / "one")
    assert [each.stat().st_mtime_ns for each in caches(tmp_path)] == [made]
    assert how(output) == "cached"
    assert_same_run(one, output, rel=1e-5)


def test_two_processes_ask_once_about_a_corpus(
    sentence_teacher: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three micro-batches a step: one process has no second one. Vectors and hidden states."""
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    plan = same_runs.recipe(
        sentence_teacher,
        text_file,
        "sentence_embedding",
        **{"max_steps": 60, "batch_size": 9, "micro_batch_size": 3, "evaluate_every": 10},
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(plan.model_dump(mode="json")))
    output = launched(LAUNCHERS[0], path, tmp_path / "two")
    assert len(caches(tmp_path)) == 1
    one = run(plan, output=tmp_path / "one")
    assert how(output) == how(one) == "cached"
    assert_same_run(one, output, rel=1e-5)
