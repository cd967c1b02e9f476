from __future__ import annotations

import errno
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from fake_run import fake_run
from rich.console import Console

from conftest import Finished
from potstill.cli import commands, entry, terminal
from potstill.cli.doctor import Check
from potstill.errors import BenchmarkFailed, Interrupted, NotFinite, TrainingFailed
from potstill.pipeline import runner
from potstill.recipe import Files

Potstill = Callable[..., Finished]


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tree = {
        "name": "little",
        "task": "masked_lm",
        "teacher": "./teacher",
        "corpus": {"sources": "text.txt"},
        "stages": [{"kind": "make_student"}],
    }
    Path("teacher").mkdir()
    Path("teacher/config.json").write_text("{}")
    Path("text.txt").write_text("some text\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def run_as(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the pipeline do something else than run."""

    def replace(action: Callable[..., Any]) -> None:
        monkeypatch.setattr(runner, "run", lambda *_, **named: action(**named))

    return replace


# --- exit codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("layers: 9 is out of range"), 2, "error: layers: 9 is out of range\n"),
        (TrainingFailed("the loss is not finite"), 1, "error: the loss is not finite\n"),
        (BenchmarkFailed("the model 'a' died"), 1, "error: the model 'a' died\n"),
        (NotFinite("w holds NaN or infinity"), 1, "error: w holds NaN or infinity\n"),
        *[
            (
                error,
                1,
                "error: Memory ran out. If this was training, lower training.micro_batch_size; "
                "otherwise free some memory.\n",
            )
            for error in (
                MemoryError(),
                torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
                RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
            )
        ],
        (Interrupted(2, 7), 130, "stopped at step 7; run the same command to resume there\n"),
        (Interrupted(15, 7), 143, "stopped at step 7; run the same command to resume there\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (SystemExit(143), 143, "stopped\n"),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "a.txt"),
            2,
            "error: a.txt: No such file\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "a"),
            2,
            "error: a: Permission denied\n",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: No space left on device\n"),
        (OSError(errno.EIO, "Input/output error", "a"), 1, "error: a: Input/output error\n"),
    ],
)
def test_an_error_is_one_sentence_and_a_code(
    potstill: Potstill,
    recipe_file: Path,
    run_as: Callable[..., None],
    error: BaseException,
    code: int,
    message: str,
) -> None:
    def fail(**_: Any) -> None:
        raise error

    run_as(fail)
    finished = potstill("run", recipe_file)
    assert (finished.code, finished.err) == (code, message)


@pytest.mark.parametrize(
    "error", [AssertionError("an invariant"), RuntimeError("mat1 and mat2 can't be multiplied")]
)
def test_a_mistake_of_ours_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch,
    recipe_file: Path,
    run_as: Callable[..., None],
    error: Exception,
) -> None:
    def fail(**_: Any) -> None:
        raise error

    run_as(fail)
    monkeypatch.setattr("sys.argv", ["potstill", "run", str(recipe_file)])
    with pytest.raises(type(error), match=str(error)):
        entry.main()


def test_square_brackets_in_a_message_are_no_markup(
    potstill: Potstill, recipe_file: Path, run_as: Callable[..., None]
) -> None:
    def fail(**_: Any) -> None:
        raise ValueError("pip install potstill[report], or [red]nothing[/red]")

    run_as(fail)
    finished = potstill("run", recipe_file)
    assert finished.err == "error: pip install potstill[report], or [red]nothing[/red]\n"


def test_square_brackets_in_what_is_printed_are_no_markup(
    potstill: Potstill, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = "a [bold]b[/bold] [/x] :smile: c[report]"
    monkeypatch.setattr("potstill.pipeline.runner.rebuild_report", lambda run: Path(odd))
    finished = potstill("report", "run")
    assert (finished.code, finished.out) == (0, f"wrote {odd}\n")

    result = {"noise": {"message": odd}, "models": {}, "ratios": {}, "notes": [odd]}
    monkeypatch.setattr("potstill.benchmarking.session.benchmark", lambda *_, **__: result)
    monkeypatch.setattr("potstill.cli.tables.result_table", lambda *_: "")
    monkeypatch.setattr("potstill.cli.tables.benchmark_notes", lambda _: [odd])
    finished = potstill("bench", "model")
    assert finished.out.endswith(f"{odd}\nnote: {odd}\nnote: {odd}\n")

    monkeypatch.setattr("potstill.cli.doctor.diagnose", lambda: [Check(odd, odd, "ok", odd)])
    finished = potstill("doctor")
    cells = " ".join(finished.out.split())
    assert cells.count("[bold]") == cells.count("[/bold]") == cells.count(":smile:") == 3
    assert cells.count("[/x]") == cells.count("c[report]") == 3


def test_doctor_names_the_extra(potstill: Potstill, monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill.cli.doctor import check_optional

    found = check_optional(lambda _: None)
    monkeypatch.setattr("potstill.cli.doctor.diagnose", lambda: found)
    stream = io.StringIO()
    monkeypatch.setattr(terminal, "out", Console(file=stream, width=120))
    assert potstill("doctor").code == 0
    assert '`pip install "potstill[report]"` for the report\'s figures.' in stream.getvalue()


def test_a_long_path_stays_in_one_line(potstill: Potstill, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("/".join(["a folder"] * 40))
    monkeypatch.setattr("potstill.pipeline.runner.rebuild_report", lambda run: path)
    assert potstill("report", "run").out == f"wrote {path}\n"


# --- commands -------------------------------------------------------------------------------------


def test_run_hands_recipe_overrides_and_output_on(
    potstill: Potstill, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []

    def run(recipe: Any, *, output: Path | None, reporter: Any) -> Path:
        seen.append((recipe.name, recipe.seed, recipe.stages[0].depth, output))
        return tmp_path

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(commands, "STARTED", time.monotonic() - 90)  # imports count
    finished = potstill("run", recipe_file, "seed=7", "make_student.depth=2", "--output", "there")
    assert finished.code == 0
    assert seen == [("little", 7, 2, Path("there"))]
    assert finished.out.startswith("      little: 1 stage\n")
    assert "Done in 1.5 minutes." in finished.out


def test_quickstart_is_the_recipe_of_that_name(
    potstill: Potstill, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []

    def run(recipe: Any, **named: Any) -> Path:
        seen.append((recipe.name, recipe.teacher.model, named["output"]))
        return tmp_path

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr("potstill.pipeline.inputs.check_inputs", lambda *_: None)
    assert potstill("quickstart", "teacher=./mine").code == 0
    assert seen == [("quickstart", "./mine", Path("runs/quickstart"))]


@pytest.fixture
def two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        fake_run(tmp_path / name)
    return tmp_path


def test_compare_prints_a_table_and_writes_a_page(two_runs: Path, potstill: Potstill) -> None:
    finished = potstill("compare", "one", "two")
    assert (finished.code, finished.err) == (0, "")
    lines = [line.split() for line in finished.out.splitlines()]
    assert ["one", "two"] in lines
    assert ["Retrieval", "MRR", "0.865", "0.865"] in lines
    assert lines[-1] == ["wrote", "compare.html"]
    assert (two_runs / "compare.html").read_text().startswith("<!DOCTYPE html>")


def test_compare_as_json_writes_a_page_only_where_it_is_told(
    two_runs: Path, potstill: Potstill
) -> None:
    finished = potstill("compare", "one", "two", "--json")
    found = json.loads(finished.out)
    assert [run["name"] for run in found["runs"]] == ["one", "two"]
    assert not (two_runs / "compare.html").exists()
    finished = potstill("compare", "one", "two", "--json", "--output", "page.html")
    assert json.loads(finished.out) == found
    assert (two_runs / "page.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one"], "error: RUN: a comparison needs two runs, and 1 is given. Give two or more.\n"),
        (
            ["one", "nowhere"],
            "error: nowhere: the folder does not exist. Give the folder that a run",
        ),
        (
            ["one", "two", "-o", "no/where.html"],
            "error: --output: the folder no does not exist. Create it with `mkdir -p`.\n",
        ),
        (["one", "two", "-o", "one"], "error: --output: one is a folder. Give the name of a file"),
    ],
)
def test_compare_refuses_in_a_sentence(
    two_runs: Path, potstill: Potstill, arguments: list[str], message: str
) -> None:
    finished = potstill("compare", *arguments)
    assert (finished.code, finished.out) == (2, "")
    assert message in finished.err
    assert "Traceback" not in finished.err


def test_recipes_lists_all_that_ship(potstill: Potstill) -> None:
    finished = potstill("recipes")
    assert finished.code == 0, finished.err
    for name in ("distilbert", "distilbert-article", "embedding", "quickstart"):
        assert name in finished.out


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("slow", 0), ("problem", 1)])
def test_doctor_fails_on_a_problem(
    potstill: Potstill, monkeypatch: pytest.MonkeyPatch, status: Any, code: int
) -> None:
    check = Check("disk", "3 GB", status, "make room")
    monkeypatch.setattr("potstill.cli.doctor.diagnose", lambda: [check])
    finished = potstill("doctor")
    assert finished.code == code
    assert finished.out.split() == [
        "check",
        "found",
        "advice",
        status,
        "disk",
        "3",
        "GB",
        "make",
        "room",
    ]


def test_units_are_those_of_files() -> None:
    assert [unit.value for unit in commands.Unit] == list(
        get_args(Files.model_fields["unit"].annotation)
    )


def test_no_command_shows_the_commands(potstill: Potstill) -> None:
    finished = potstill()
    assert finished.code == 2
    assert "quickstart" in finished.out + finished.err
