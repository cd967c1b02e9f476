"""`potstill evaluate --suite`: all nine tasks of GLUE in the terminal, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Finished
from potstill.suites.catalog import SUITES
from tiny_suites import write_glue


def test_glue(
    sentence_teacher: Path,
    masked_lm_teacher: Path,
    tmp_path: Path,
    potstill: Callable[..., Finished],
) -> None:
    data, output = write_glue(tmp_path / "data"), tmp_path / "out"
    done = potstill(
        *("evaluate", f"small={sentence_teacher}", "--baseline", f"large={masked_lm_teacher}"),
        *("--suite", "glue", "--data-dir", data, "--seeds", 1, "--epochs", 1, "-o", output),
    )
    assert done.code == 0, done.err
    result = json.loads((output / "suite.json").read_text(encoding="utf-8"))
    for name in ("large", "small"):
        tasks = result["models"][name]["tasks"]
        assert set(tasks) == {task.name for task in SUITES["glue"]}
        for task in SUITES["glue"]:
            assert set(tasks[task.name]) == {*task.scores, "score"}
        means = [found["score"]["median"] for found in tasks.values()]
        assert result["models"][name]["average"]["all"] == pytest.approx(sum(means) / 9)
    for shown in ("PARTIAL", "1 seed instead of 5", "MNLI, accuracy", "mismatched", "without WNLI"):
        assert shown in done.out


def test_refused_usage(
    sentence_teacher: Path, tmp_path: Path, potstill: Callable[..., Finished]
) -> None:
    common = ("evaluate", f"small={sentence_teacher}", "--baseline", sentence_teacher)
    for more, message in (
        (("--tasks", "cola"), "--tasks: it needs --suite. Give --text FILES, or --suite NAME."),
        ((), "--text: no file to score on is given. Give --text FILES, or --suite NAME."),
        (("--suite", "glue", "--text", "x.txt"), "--suite: it brings its own text. Omit --text,"),
        (("--suite", "glue", "--data-dir", tmp_path), f"{tmp_path} has no CoLA/train.tsv"),
        (("--suite", "imdb", "--data-dir", tmp_path), f"{tmp_path} has no aclImdb/train"),
        (("--suite", "squad", "--data-dir", tmp_path), f"{tmp_path} has no train-v1.1.json"),
        (("--suite", "glue", "--seeds", 0), "--seeds: 0"),
        (("--suite", "glue", "--tasks", "rte, cola", "--data-dir", tmp_path), "no CoLA/train.tsv"),
        (("--suite", "glue", "--tasks", " ,"), "no task is named"),
    ):
        done = potstill(*common, *more)
        assert done.code == 2
        assert message in done.err.replace("\n", " ")
        assert "Traceback" not in done.err
