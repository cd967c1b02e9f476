"""Suites from Python: kept trials, quick looks, names, bad input, on tiny models and files."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

from conftest import tiny_config, tiny_tokenizer
from potstill import evaluate_suite
from potstill.errors import Interrupted
from potstill.models import load_model
from potstill.pipeline import Silent
from potstill.suites import trials
from potstill.suites.runner import RESULT
from potstill.training import loop
from tiny_suites import write_glue, write_imdb, write_squads

FAST: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tasks = ["CoLA", "STS-B", "WNLI", "RTE"]
    return write_squads(write_imdb(write_glue(tmp_path_factory.mktemp("official"), tasks)))


class Told(Silent):
    """What a suite reports; may do something at its nth training."""

    def __init__(self, at: int = 0, act: Any = None) -> None:
        self.stages: list[tuple[str, bool]] = []
        self.said: list[str] = []
        self._at, self._act = at, act

    def stage(self, number: int, total: int, kind: str, skipped: bool) -> None:
        self.stages.append((kind, skipped))
        if number == self._at:
            self._act()

    def say(self, message: str) -> None:
        self.said.append(message)

    @property
    def skipped(self) -> list[bool]:
        return [skipped for _, skipped in self.stages]


def stop() -> None:
    raise KeyboardInterrupt


def test_what_is_done_is_kept_where_a_suite_was_stopped(
    sentence_teacher: Path, data: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"data_dir": data, "tasks": ["cola"], "seeds": 2, **FAST}
    models = {"other": sentence_teacher}
    with pytest.raises(KeyboardInterrupt):
        evaluate_suite(
            models, sentence_teacher, output=tmp_path / "o", reporter=Told(3, stop), **given
        )
    assert not (tmp_path / "o" / RESULT).exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("score.json")}
    assert len(kept) == 2
    told = Told()
    result = evaluate_suite(models, sentence_teacher, output=tmp_path / "o", reporter=told, **given)
    assert told.skipped == [True, True, False, False]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not list((tmp_path / "o").rglob("*.safetensors"))  # scores and logs are kept alone
    whole = evaluate_suite(models, sentence_teacher, output=tmp_path / "whole", **given)
    assert result["models"] == whole["models"]
    assert json.loads((tmp_path / "o" / RESULT).read_text()) == result


def test_a_training_that_was_stopped_goes_on(
    sentence_teacher: Path, data: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"data_dir": data, "tasks": ["wnli"], "seeds": 1, "epochs": 4}

    class Stopping(Silent):
        def progress(self, fraction: float, note: str = "") -> None:
            if note.startswith("step 2 "):
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as stopped:
        evaluate_suite([], sentence_teacher, output=tmp_path / "o", reporter=Stopping(), **given)
    assert stopped.value.signum == signal.SIGTERM
    assert list((tmp_path / "o").rglob("checkpoints/*"))
    result = evaluate_suite([], sentence_teacher, output=tmp_path / "o", **given)
    [log] = (tmp_path / "o").rglob("log.jsonl")
    assert '"resume"' in log.read_text()
    whole = evaluate_suite([], sentence_teacher, output=tmp_path / "whole", **given)
    assert result["models"] == whole["models"]


def test_a_finished_training_is_not_done_again_where_its_score_was_not_written(
    sentence_teacher: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"data_dir": data, "tasks": ["wnli"], "seeds": 1, **FAST}
    with monkeypatch.context() as patched:
        patched.setattr(trials, "write_json", lambda *_: stop())
        with pytest.raises(KeyboardInterrupt):
            evaluate_suite([], sentence_teacher, output=tmp_path / "o", **given)
    monkeypatch.setattr(loop._Loop, "_step", lambda *_: pytest.fail("it is done again"))
    evaluate_suite([], sentence_teacher, output=tmp_path / "o", **given)
    assert len(list((tmp_path / "o").rglob("log.jsonl"))) == 1
    assert not list((tmp_path / "o").rglob("*.safetensors"))


def test_what_changed_is_trained_anew(sentence_teacher: Path, data: Path, tmp_path: Path) -> None:
    model = shutil.copytree(sentence_teacher, tmp_path / "encoder")

    def again(**changes: Any) -> Told:
        told = Told()
        given = {"data_dir": data, "tasks": ["wnli"], "seeds": 1, **FAST, **changes}
        evaluate_suite([], model, output=tmp_path / "o", reporter=told, **given)
        return told

    assert again().skipped == [False]
    assert again().skipped == [True]
    assert again(seeds=2).skipped == [True, False]
    changed = again(learning_rate=2e-3)
    assert changed.skipped == [False]
    assert (
        "WNLI, encoder, seed 1: model, data or settings have changed since the last run"
        in changed.said
    )
    assert again().skipped == [True]  # the former scores are still there
    assert again(limit=6).skipped == [False]
    (model / "README.md").write_text("a card changes no model")
    assert again().skipped == [True]
    tensors = load_file(model / "model.safetensors")
    tensors = {name: tensor + 0.01 for name, tensor in tensors.items()}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert again().skipped == [False]


def test_a_quick_look_is_marked_everywhere(
    sentence_teacher: Path, data: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"data_dir": data, "tasks": ["cola", "wnli"], **FAST}
    result = evaluate_suite([], sentence_teacher, output=tmp_path, seeds=1, limit=4, **given)
    assert result["partial"] is True
    assert result["partial_reasons"][:3] == [
        "2 of 9 tasks",
        "1 seed instead of 5",
        "CoLA: 4 of 12 examples of train",
    ]
    assert "CoLA: 4 of 8 examples of scored" in result["partial_reasons"]


def test_a_whole_suite_is_not_marked(sentence_teacher: Path, data: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"data_dir": data, "epochs": 0.1}
    result = evaluate_suite([], sentence_teacher, "imdb", output=tmp_path, limit=1000, **given)
    assert (result["partial"], result["partial_reasons"]) == (False, [])
    own = result["models"][sentence_teacher.name]["tasks"]["imdb"]["accuracy"]
    assert len(own["all"]) == 5
    assert own["median"] == np.median(own["all"])


def test_a_fine_tuned_models_body_gets_a_new_head(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = tiny_config(1, num_labels=3, id2label={0: "x", 1: "y", 2: "z"})
    BertForSequenceClassification(config).save_pretrained(tmp_path / "tuned")
    tiny_tokenizer().save_pretrained(tmp_path / "tuned")
    given: dict[str, Any] = {"data_dir": data, "tasks": ["stsb"], "seeds": 1, **FAST}
    result = evaluate_suite([], tmp_path / "tuned", output=tmp_path / "o", **given)
    assert any("tuned was fine-tuned before (classification)" in note for note in result["notes"])
    [body] = (tmp_path / "o" / "work" / "tuned").glob("body-*")
    kept = load_model(body, "sentence_embedding").model.state_dict()
    given = load_file(tmp_path / "tuned" / "model.safetensors")
    assert kept
    for name, tensor in kept.items():
        assert torch.equal(tensor, given[f"bert.{name}"])


def test_questions_of_both_kinds(masked_lm_teacher: Path, data: Path, tmp_path: Path) -> None:
    for suite in ("squad", "squad2"):
        result = evaluate_suite(
            [], masked_lm_teacher, suite, data_dir=data, output=tmp_path / suite, seeds=1, **FAST
        )
        own = result["models"][masked_lm_teacher.name]["tasks"][suite]
        means = np.mean([own["exact_match"]["all"], own["f1"]["all"]], axis=0)
        assert own["score"]["all"] == pytest.approx(means)
        # never an answer: right where there is none
        lacking = result["tasks"][suite]["constant"]
        assert lacking["exact_match"] == lacking["f1"]
        assert (lacking["f1"] > 0) == (suite == "squad2")


def test_the_result_has_no_path_of_this_machine(
    sentence_teacher: Path, data: Path, tmp_path: Path
) -> None:
    spec = f"small={sentence_teacher}"
    result = evaluate_suite(
        [spec], sentence_teacher, data_dir=data, tasks=["rte"], output=tmp_path, seeds=1, **FAST
    )
    assert list(result["models"]) == [sentence_teacher.name, "small"]
    assert set(result["retention"]) == {"small"}
    assert str(tmp_path.parent) not in json.dumps(result)
    assert set(result) == {
        *("suite", "partial", "partial_reasons", "baseline", "models", "retention", "tasks"),
        *("notes", "settings", "environment"),
    }
    assert result["tasks"]["rte"]["small"] is True
    assert any(note.startswith("too few scored examples") for note in result["notes"])


def test_bad_input(sentence_teacher: Path, data: Path, tmp_path: Path) -> None:
    def refused(match: str, models: Any = (), suite: str = "glue", **given: Any) -> None:
        given = {"data_dir": data, "tasks": ["rte"] if suite == "glue" else None, **given}
        with pytest.raises(ValueError, match=match):
            evaluate_suite(models, sentence_teacher, suite, output=tmp_path / "o", **given)

    refused("--seeds: 0 is less than one training", seeds=0)
    refused("--limit: 0 leaves no example", limit=0)
    refused("--epochs: 0 is not a number above 0", epochs=0)
    refused("--epochs: inf is not a number above 0", epochs=float("inf"))
    refused("--learning-rate: -1 is not a number above 0", learning_rate=-1.0)
    refused("--learning-rate: nan is not a number above 0", learning_rate=float("nan"))
    refused("--suite: 'super' is not a suite", suite="super")
    refused("--tasks: 'x' is not a task of glue", tasks=["x"])
    refused(r"has no QNLI/train\.tsv", tasks=["qnli"])
    refused("is not a model folder", models=[tmp_path])
    refused(
        r"model\.onnx is an \.onnx file, and a suite fine-tunes",
        models=[tmp_path / "onnx" / "model.onnx"],
    )
    refused("would both be named", models=[sentence_teacher])
    refused("'a b' can't name a model", models=[f"a b={sentence_teacher}"])
    refused("'../up' can't name a model", models={"../up": sentence_teacher})
    assert not (tmp_path / "o").exists()
