"""The command's arguments as settings, and what it refuses before anything is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Finished
from potstill.recipe import Benchmark, Files, TextPass

Potstill = Callable[..., Finished]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be measured."""
    seen: list[Any] = []

    def benchmark(models: Any, settings: Any, progress: Any, *, fit: bool) -> dict[str, Any]:
        seen.append((list(models.items()), settings, fit))
        return {"noise": {"message": None}, "models": {}, "ratios": {}, "notes": []}

    monkeypatch.setattr("potstill.benchmarking.session.benchmark", benchmark)
    monkeypatch.setattr("potstill.cli.tables.result_table", lambda *_: "")
    monkeypatch.setattr("potstill.cli.tables.benchmark_notes", lambda _: [])
    return seen


def test_defaults_are_cut_to_fit_and_what_is_asked_for_is_not(
    asked: list[Any], potstill: Potstill, tmp_path: Path
) -> None:
    assert potstill("bench", "b/onnx/model.onnx", "a", "--json", tmp_path / "r.json").code == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["environment"]["versions"]["potstill"]
    options = [
        *("--length", 16, "--length", 64, "--batch", 4, "--batch", 2, "--batch", 4),
        *("--rounds", 3, "--repeats", 2, "--threads", 2),
    ]
    assert potstill("bench", "a", *options).code == 0
    first = Benchmark(
        **{"lengths": [16, 128, 512], "batches": [1, 8], "throughput_batch": 32},
        throughput_length=128,
    )
    second = Benchmark(
        **{"lengths": [16, 64], "batches": [2], "throughput_batch": 4},
        **{"throughput_length": 64, "rounds": 3, "repeats": 2, "threads": 2},
    )
    assert asked == [
        ([(name, Path(name)) for name in ("b/onnx/model.onnx", "a")], first, True),
        ([("a", Path("a"))], second, False),
    ]


def test_files_of_text_become_a_pass(
    asked: list[Any], potstill: Potstill, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written: list[Any] = []
    monkeypatch.setattr(
        "potstill.benchmarking.files.write_benchmark", lambda _, *files: written.append(files)
    )
    texts = ("--data", "x.tsv", "--data", "y.tsv", "--column", "s1", "--column", "s2", "--limit", 5)
    files = (tmp_path / "r.json", tmp_path / "r.csv")
    assert potstill("bench", "a", *texts, "--json", files[0], "--csv", files[1]).code == 0
    ((_, settings, _),) = asked
    sources = [Files(paths=["x.tsv"]), Files(paths=["y.tsv"])]
    assert settings.pass_over == TextPass(sources=sources, columns=["s1", "s2"], max_texts=5)
    assert written == [files]


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        (["a", "b", "./a/"], [], "a: the model is given twice. Give each model once."),
        (["a"], ["--column", "s"], "--column: it needs --data. Name the files of the texts, too."),
        (["a"], ["--limit", "3"], "--limit: it needs --data. Name the files of the texts, too."),
        (
            ["a"],
            ["--data", "x", "--column", "a", "--column", "b", "--column", "c"],
            "--column: 3 columns are given. Give one, or two for pairs.",
        ),
        (
            ["a"],
            ["--json", "no/r.json"],
            "--json: no/r.json cannot be written (No such file or directory). Name another file.",
        ),
        (["a"], ["--csv", "."], "--csv: . is a folder. Name a file."),
        (
            ["a"],
            ["--json", "r", "--csv", "./r"],
            "--csv: r is also given to --json. Name two files.",
        ),
    ],
)
def test_what_is_refused_before_anything_is_measured(
    asked: list[Any], potstill: Potstill, models: list[str], options: list[str], message: str
) -> None:
    finished = potstill("bench", *models, *options)
    assert (finished.code, finished.out, finished.err) == (2, "", f"error: {message}\n")
    assert asked == []


def test_a_folder_that_can_t_be_written_to(
    asked: list[Any], potstill: Potstill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> Callable[..., Any]:
        raise PermissionError(13, "Permission denied")

    # the tests may run as root, whom no permission stops
    monkeypatch.setattr("potstill.benchmarking.files.tempfile.TemporaryFile", refuse)
    finished = potstill("bench", "a", "--json", tmp_path / "r.json")
    assert finished.code == 2
    assert finished.err.endswith(
        "r.json cannot be written (Permission denied). Name another file.\n"
    )
    assert asked == []
