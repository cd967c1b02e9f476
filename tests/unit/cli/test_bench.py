"""The command's arguments as settings, and what it refuses before anything is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.cli import bench as command
from potstill.recipe import Benchmark, Files, TextPass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be measured."""
    seen: list[Any] = []

    def benchmark(models: Any, settings: Any, progress: Any, *, fit: bool) -> dict[str, Any]:
        seen.append((list(models.items()), settings, fit))
        return {"models": {}}

    monkeypatch.setattr(command, "benchmark", benchmark)
    return seen


def test_defaults_are_cut_to_fit_and_what_is_asked_for_is_not(asked: list[Any]) -> None:
    result = command.bench(["b/onnx/model.onnx", "a"])
    assert result["environment"]["versions"]["potstill"]
    command.bench(["a"], lengths=[16, 64], batches=[4, 2, 4], rounds=3, repeats=2, threads=2)
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


def test_files_of_text_become_a_pass(asked: list[Any]) -> None:
    command.bench(["a"], data=["x.tsv", "y.tsv"], columns=["s1", "s2"], max_texts=5)
    ((_, settings, _),) = asked
    sources = [Files(paths=["x.tsv"]), Files(paths=["y.tsv"])]
    assert settings.pass_over == TextPass(sources=sources, columns=["s1", "s2"], max_texts=5)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        (["a", "b", "./a/"], {}, r"^a is named twice: give each model once$"),
        (["a"], {"columns": ["s"]}, r"^--column and --limit are of --data: name its files, too$"),
        (["a"], {"max_texts": 3}, r"^--column and --limit are of --data"),
        (["a"], {"data": ["x"], "columns": ["a", "b", "c"]}, r"^--column: 3 columns are named: "),
        (["a"], {"json_file": Path("no/r.json")}, r"^--json: no/r.json can't be written \(No such"),
        (["a"], {"csv_file": Path(".")}, r"^--csv: \. is a folder: name a file$"),
        (["a"], {"json_file": Path("r"), "csv_file": Path("./r")}, r"^--json and --csv both name"),
    ],
)
def test_what_is_refused_before_anything_is_measured(
    asked: list[Any], models: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        command.bench(models, **options)
    assert asked == []


def test_a_folder_that_can_t_be_written_to(
    asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> Callable[..., Any]:
        raise PermissionError(13, "Permission denied")

    # the tests may run as root, whom no permission stops
    monkeypatch.setattr("potstill.benchmarking.files.tempfile.TemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"r\.json can't be written \(Permission denied\): name"):
        command.bench(["a"], json_file=tmp_path / "r.json")
    assert asked == []
