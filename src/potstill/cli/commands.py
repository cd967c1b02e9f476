"""Run the commands: each takes its arguments, calls a function and prints the result."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from potstill.cli import terminal
from potstill.cli.terminal import TerminalReporter, print_line

app = typer.Typer(
    name="potstill",
    help="Turn a large text encoder into a small, fast one, and report what it retains.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
STARTED = time.monotonic()  # imports of torch and transformers are part of what a user waits for


class Unit(StrEnum):
    """Name what one record of a .txt file is."""

    line = "line"
    paragraph = "paragraph"
    document = "document"


# --- options --------------------------------------------------------------------------------------

_Strings = list[str] | None
_Folder = Path | None

_Recipe = Annotated[str, Argument(help="A shipped recipe's name, or a YAML file.")]
_Overrides = Annotated[
    _Strings, Argument(metavar="[KEY=VALUE]...", help="Values to change in the recipe.")
]
_Output = Annotated[_Folder, Option("--output", "-o", help="The run folder. Default: runs/RECIPE.")]
_Plan = Annotated[
    bool, Option("--plan", help="Show stages, cost and one decoded batch; start nothing.")
]

_MODEL = "Model folders, or FOLDER/onnx/NAME.onnx"
_Models = Annotated[list[str], Argument(metavar="MODEL...", help=f"{_MODEL}, to score.")]
_Baseline = Annotated[str, Option(help="The model that the others are compared with.")]
_Text = Annotated[_Strings, Option(help="Files to score on (paths or globs). Repeatable.")]
_Query = Annotated[str | None, Option(help="Sentence encoders: column of the queries.")]
_Passage = Annotated[str, Option(help="Column of the texts. Pairs: two, with a comma.")]
_Label = Annotated[
    str | None, Option(help="Column of the labels. Sentence encoders: column of the topics.")
]
_Unit = Annotated[Unit, Option(help="Unit of a record in a .txt file.")]
_Suite = Annotated[
    str | None, Option(help="Instead of --text: fine-tune on glue, imdb, squad or squad2.")
]
_DataDir = Annotated[_Folder, Option(help="Suites: the official files. Default: the hub's.")]
_Tasks = Annotated[str | None, Option(help="Suites: some tasks, such as cola,rte. Default: all.")]
_Seeds = Annotated[int | None, Option(help="Suites: trainings per model and task. Default: 5.")]
_Limit = Annotated[
    int | None, Option(help="Suites: at most this many examples per part, for a quick look.")
]
_ForAll = Annotated[float | None, Option(help="Suites: for all tasks. Default: each task's own.")]
_Threads = Annotated[int | None, Option(help="Suites: threads of this process.", min=1)]
_SuiteFolder = Annotated[
    _Folder, Option("--output", "-o", help="Suites: the folder. Default: runs/suites/SUITE.")
]

_Timed = Annotated[
    list[str], Argument(metavar="MODEL...", help=f"{_MODEL}. The first is the baseline.")
]
_ThreadsEach = Annotated[int, Option(help="Threads of each process.", min=1)]
_Lengths = Annotated[
    list[int] | None, Option(help="Tokens per text. Repeatable. Default: 16, 128, 512.", min=3)
]
_Batches = Annotated[
    list[int] | None,
    Option(help="Texts per batch, for throughput. Repeatable. Default: 1, 8, 32.", min=1),
]
_Rounds = Annotated[int, Option(help="Interleaved rounds.", min=3)]
_Repeats = Annotated[int, Option(help="Timed passes per round and length.", min=1)]
_Data = Annotated[_Strings, Option(help="Also time passes over these files' texts. Repeatable.")]
_Column = Annotated[_Strings, Option(help="Their column. Twice for pairs. Default: text.")]
_First = Annotated[int | None, Option(help="Read at most this many texts.", min=1)]
_Json = Annotated[_Folder, Option("--json", help="Write the whole result, raw samples included.")]
_Csv = Annotated[_Folder, Option("--csv", help="Write a row per model and shape.")]

_Run = Annotated[Path, Argument(metavar="RUN", help="A run folder.")]
_Runs = Annotated[list[Path], Argument(metavar="RUN...", help="At least two run folders.")]
_Port = Annotated[int, Option(help="Port on 127.0.0.1. 0: any free port.", min=0, max=65535)]
_NoBrowser = Annotated[bool, Option("--no-browser", help="Print the page's address only.")]
_Page = Annotated[_Folder, Option("--output", "-o", help="The page. Default: compare.html.")]
_AsJson = Annotated[bool, Option("--json", help="Print JSON. Write a page only with --output.")]


# --- recipes --------------------------------------------------------------------------------------


@app.command()
def run(
    recipe: _Recipe, overrides: _Overrides = None, output: _Output = None, plan: _Plan = False
) -> None:
    """Run a recipe, or resume a run of it that was stopped."""
    from potstill.pipeline.inputs import check_inputs
    from potstill.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    folder = output if output is not None else Path("runs") / loaded.name
    # before ten seconds of imports: most mistakes are mistyped paths
    check_inputs(loaded, folder)
    if plan:
        from potstill.pipeline.plan.plan import plan_run

        for line in plan_run(loaded, folder):
            print_line(line)
        return
    from potstill.pipeline import run as run_recipe

    reporter = TerminalReporter()
    with reporter.live():
        count = len(loaded.stages)
        reporter.say(f"{loaded.name}: {count} stage{'s' if count > 1 else ''}")
        run_recipe(loaded, output=folder, reporter=reporter)
    if not reporter.quiet:
        _summary(folder, time.monotonic() - STARTED)


@app.command()
def quickstart(overrides: _Overrides = None, output: _Output = None, plan: _Plan = False) -> None:
    """Run the recipe 'quickstart': distill a sentence encoder on real text, offline."""
    run("quickstart", overrides, output, plan)


def _summary(folder: Path, seconds: float) -> None:
    from potstill.cli.tables import run_table
    from potstill.reporting.results import read_results

    if (folder / "metrics.json").is_file():
        results = read_results(folder)
        terminal.out.print(run_table(results))
        _notes(results.findings)
    minutes = f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
    print_line(f"Done in {minutes}.")
    made = {"model": "student", "report.html": "report", "metrics.json": "figures"}
    for name, what in made.items():
        if (folder / name).exists():
            print_line(f"  {what + ':':9}{folder / name}")


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    import yaml

    from potstill.recipe import shipped_recipes

    table = _table("recipe", "task", "description")
    for name, path in shipped_recipes().items():
        # as it is written: a recipe that leaves the teacher to its user is not whole yet
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        table.add_row(*map(Text, (name, tree["task"], " ".join(tree["description"].split()))))
    terminal.out.print(table)


# --- measuring ------------------------------------------------------------------------------------


@app.command()
def evaluate(
    models: _Models,
    baseline: _Baseline,
    text: _Text = None,
    query: _Query = None,
    passage: _Passage = "text",
    label: _Label = None,
    unit: _Unit = Unit.line,
    suite: _Suite = None,
    data_dir: _DataDir = None,
    tasks: _Tasks = None,
    seeds: _Seeds = None,
    limit: _Limit = None,
    learning_rate: _ForAll = None,
    epochs: _ForAll = None,
    threads: _Threads = None,
    output: _SuiteFolder = None,
) -> None:
    """Compare models with a baseline, on your own text or fine-tuned on a public suite."""
    columns = {"query": query, "passage": passage, "label": label, "unit": unit.value}
    numbers = {"seeds": seeds, "limit": limit, "learning_rate": learning_rate, "epochs": epochs}
    given = {"data_dir": data_dir, "tasks": tasks, **numbers, "threads": threads, "output": output}
    given = {key: value for key, value in given.items() if value is not None}
    if suite is not None:
        if text or columns != {"query": None, "passage": "text", "label": None, "unit": "line"}:
            raise ValueError(
                "--suite: it brings its own text. Omit --text, --unit and the columns' options."
            )
        _suite(models, baseline, suite, given)
        return
    if not text or given:
        key = next(iter(given), "text").replace("_", "-")
        what = "it needs --suite" if given else "no file to score on is given"
        raise ValueError(f"--{key}: {what}. Give --text FILES, or --suite NAME.")
    from potstill.cli.tables import result_table
    from potstill.evaluation import evaluate as score

    reporter = TerminalReporter()
    with reporter.live():
        reporter.stage(1, 1, "evaluate", False)
        shown: Any = {**columns, "progress": reporter.progress, "say": reporter.say}
        result = score(models, baseline, text, **shown)
    terminal.out.print(result_table("evaluate", result))
    _notes([*result.get("findings", []), *result.get("warnings", [])])


def _suite(models: list[str], baseline: str, suite: str, given: dict[str, Any]) -> None:
    from potstill.cli.tables import suite_table
    from potstill.suites import evaluate_suite
    from potstill.suites.runner import RESULT

    if "tasks" in given:
        given["tasks"] = given["tasks"].replace(",", " ").split()
    reporter = TerminalReporter()
    with reporter.live():
        result = evaluate_suite(models, baseline, suite, **given, reporter=reporter)
    terminal.out.print(suite_table(result))
    if result["partial"]:
        print_line(f"PARTIAL, a quick look: {'; '.join(result['partial_reasons'])}", "yellow")
    _notes(result["notes"])
    folder = given.get("output") or Path("runs") / "suites" / suite
    print_line(f"wrote {folder / RESULT}")


@app.command()
def bench(
    models: _Timed,
    threads: _ThreadsEach = 1,
    length: _Lengths = None,
    batch: _Batches = None,
    rounds: _Rounds = 10,
    repeats: _Repeats = 10,
    data: _Data = None,
    column: _Column = None,
    limit: _First = None,
    json_file: _Json = None,
    csv_file: _Csv = None,
) -> None:
    """Measure size and speed of models, in interleaved rounds (see docs/benchmark.md)."""
    from potstill.benchmarking.files import check_targets, write_benchmark
    from potstill.cli.bench import folders_of, pass_over
    from potstill.recipe import Benchmark
    from potstill.storage import environment

    check_targets(json_file, csv_file)
    lengths, batches = length or [16, 128, 512], sorted(set(batch or [1, 8, 32]))
    settings = Benchmark(
        threads=threads,
        lengths=lengths,
        rounds=rounds,
        repeats=repeats,
        throughput_batch=batches[-1],
        batches=batches[:-1],
        throughput_length=min(128, max(lengths)),
        pass_over=pass_over(data or [], column, limit),
    )
    folders, reporter = folders_of(models), TerminalReporter()
    # seconds of imports come after the checks of what was typed
    from potstill.benchmarking.session import benchmark
    from potstill.cli.tables import benchmark_notes, result_table

    with reporter.live():
        reporter.stage(1, 1, "benchmark", False)
        result = benchmark(folders, settings, reporter.progress, fit=length is None)
    result = {**result, "environment": environment()}
    write_benchmark(result, json_file, csv_file)
    terminal.out.print(result_table("benchmark", result))
    for line in benchmark_notes(result):
        print_line(line)
    _notes([*result["notes"], result["noise"]["message"]])


# --- runs -----------------------------------------------------------------------------------------


@app.command()
def report(run_folder: _Run) -> None:
    """Regenerate metrics.json, report.html and the model card of a run."""
    from potstill.pipeline.runner import rebuild_report

    print_line(f"wrote {rebuild_report(run_folder)}")


@app.command()
def demo(run_folder: _Run, port: _Port = 8765, no_browser: _NoBrowser = False) -> None:
    """Try a finished run's models side by side, on a local page (Ctrl-C ends it)."""
    from potstill.cli.demo.server import serve

    serve(run_folder, port, open_browser=not no_browser, say=print_line)


@app.command()
def compare(runs: _Runs, output: _Page = None, as_json: _AsJson = False) -> None:
    """Compare runs of one task side by side, and list what cannot be compared."""
    from potstill.cli.tables import runs_table
    from potstill.reporting import compare_runs, write_comparison

    found = compare_runs(runs)
    path = output or (None if as_json else Path("compare.html"))
    if path is not None:
        write_comparison(found, path)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False))
        return
    terminal.out.print(runs_table(found))
    _notes(found["warnings"])
    _notes(found["notes"], style="")
    print_line(f"wrote {path}")


@app.command()
def doctor() -> None:
    """Check versions, CPU, memory, disk, GPU and offline state; report what would be slow here."""
    from potstill.cli.doctor import diagnose

    colors = {"ok": "green", "slow": "yellow", "problem": "red"}
    table, checks = _table("", "check", "found", "advice"), diagnose()
    for check in checks:
        mark = Text(check.status, style=colors[check.status])
        table.add_row(mark, *map(Text, (check.name, check.value, check.advice or "")))
    terminal.out.print(table)
    if any(check.status == "problem" for check in checks):
        raise typer.Exit(1)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _notes(notes: Iterable[str | None], style: str = "yellow") -> None:
    for note in filter(None, notes):
        print_line(f"note: {note}", style)
