"""The commands: arguments in, the right function called, its result printed."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from potstill.cli import terminal
from potstill.cli.terminal import TerminalReporter, print_line

app = typer.Typer(
    name="potstill",
    help="Turn a large text encoder into a small, fast one, and show what was kept.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
STARTED = time.monotonic()  # imports of torch and transformers are part of what a user waits for

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Values to change in the recipe."),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="The run folder; by default runs/<name of the recipe>."),
]
Plan = Annotated[
    bool, typer.Option("--plan", help="Show stages, cost and one decoded batch; start nothing.")
]


class Unit(StrEnum):
    """What one record of a .txt file is."""

    line = "line"
    paragraph = "paragraph"
    document = "document"


@app.command()
def run(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe's name, or the path of a YAML file.")
    ],
    overrides: Overrides = None,
    output: Output = None,
    plan: Plan = False,
) -> None:
    """Run a recipe; the same command again goes on where it stopped."""
    _run(recipe, overrides or [], output, plan)


@app.command()
def quickstart(overrides: Overrides = None, output: Output = None, plan: Plan = False) -> None:
    """Distil a real sentence encoder on real text, offline: the recipe 'quickstart'."""
    _run("quickstart", overrides or [], output, plan)


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    import yaml

    from potstill.recipe import shipped_recipes

    table = _table("recipe", "task", "what it does")
    for name, path in shipped_recipes().items():
        # as it is written: one that leaves the teacher to its user is no whole recipe yet
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        table.add_row(*map(Text, (name, tree["task"], " ".join(tree["description"].split()))))
    terminal.out.print(table)


@app.command()
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Model folders, or FOLDER/onnx/NAME.onnx, to score."
        ),
    ],
    baseline: Annotated[str, typer.Option(help="The model they are compared with.")],
    text: Annotated[
        list[str] | None, typer.Option(help="Files to score on (paths or globs); repeatable.")
    ] = None,
    query: Annotated[
        str | None, typer.Option(help="Sentence encoders: column of the queries.")
    ] = None,
    passage: Annotated[
        str, typer.Option(help="Column of the texts; two with a comma for pairs.")
    ] = "text",
    label: Annotated[
        str | None, typer.Option(help="Column of the labels; sentence encoders: of the topics.")
    ] = None,
    unit: Annotated[Unit, typer.Option(help="What a record of a .txt file is.")] = Unit.line,
    suite: Annotated[
        str | None,
        typer.Option(
            help="Instead of --text: fine-tune on glue, imdb, squad or squad2, and score."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Suites: the official files; by default the hub's.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Suites: some tasks, as in cola,rte.")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Suites: trainings a model and task; 5.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Suites: examples of each part at most, for a quick look.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Suites: of all tasks; by default each task's own.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Suites: the same of epochs.")] = None,
    threads: Annotated[int | None, typer.Option(help="Suites: of this process.", min=1)] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Suites: the folder; by default runs/suites/SUITE."),
    ] = None,
) -> None:
    """Score models beside a baseline: on your own text, or fine-tuned on a public suite."""
    given = {
        "data_dir": data_dir,
        "tasks": None if tasks is None else tasks.replace(",", " ").split(),
        "seeds": seeds,
        "limit": limit,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "threads": threads,
        "output": output,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if suite is not None:
        if text or query or label or passage != "text" or unit != Unit.line:
            raise ValueError(
                "--suite brings its own text: leave --text, --unit and the columns' options out"
            )
        _suite(models, baseline, suite, given)
        return
    if not text or given:
        more = "".join(f" (--{key.replace('_', '-')} is a suite's)" for key in list(given)[:1])
        raise ValueError(f"give --text FILES to score on, or --suite NAME{more}")
    from potstill.cli.tables import result_table
    from potstill.evaluation import evaluate as score

    reporter = TerminalReporter()
    with reporter.live():
        reporter.stage(1, 1, "evaluate", False)
        result = score(
            models,
            baseline,
            text,
            query=query,
            passage=passage,
            label=label,
            unit=unit.value,
            progress=reporter.progress,
            say=reporter.say,
        )
    terminal.out.print(result_table("evaluate", result))
    for note in [*result.get("findings", []), *result.get("warnings", [])]:
        print_line(f"note: {note}", "yellow")


def _suite(models: list[str], baseline: str, suite: str, given: dict[str, Any]) -> None:
    from potstill.cli.tables import suite_table
    from potstill.suites import evaluate_suite
    from potstill.suites.runner import RESULT

    reporter = TerminalReporter()
    with reporter.live():
        result = evaluate_suite(models, baseline, suite, **given, reporter=reporter)
    terminal.out.print(suite_table(result))
    if result["partial"]:
        print_line(f"PARTIAL, a quick look: {'; '.join(result['partial_reasons'])}", "yellow")
    for note in result["notes"]:
        print_line(f"note: {note}", "yellow")
    folder = given.get("output") or Path("runs") / "suites" / suite
    print_line(f"wrote {folder / RESULT}")


@app.command()
def bench(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Model folders or FOLDER/onnx/NAME.onnx; the first is the baseline.",
        ),
    ],
    threads: Annotated[int, typer.Option(help="Threads of each process.", min=1)] = 1,
    length: Annotated[
        list[int] | None,
        typer.Option(help="Tokens of a text; repeatable. Default: 16, 128, 512.", min=3),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            help="Texts of a batch, for throughput; repeatable. Default: 1, 8, 32.", min=1
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.", min=3)] = 10,
    repeats: Annotated[int, typer.Option(help="Timed passes a round and length.", min=1)] = 10,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Also time passes over the texts of these files; repeatable."),
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="Their column; twice for pairs. Default: text.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="The first so many texts.", min=1)] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="A file for all of it, raw samples too.")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="A file with a row a model and shape.")
    ] = None,
) -> None:
    """Measure size and speed of models, in interleaved rounds: docs/benchmark.md."""
    from potstill.cli.bench import bench as measure
    from potstill.cli.tables import benchmark_notes, result_table

    reporter = TerminalReporter()
    with reporter.live():
        reporter.stage(1, 1, "benchmark", False)
        result = measure(
            models,
            threads=threads,
            lengths=length,
            batches=batch,
            rounds=rounds,
            repeats=repeats,
            data=data or [],
            columns=column,
            max_texts=limit,
            json_file=json_file,
            csv_file=csv_file,
            progress=reporter.progress,
        )
    terminal.out.print(result_table("benchmark", result))
    for line in benchmark_notes(result):
        print_line(line)
    for note in [*result["notes"], result["noise"]["message"]]:
        if note:
            print_line(f"note: {note}", "yellow")


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
) -> None:
    """Write metrics.json, report.html and the model card of a run anew."""
    from potstill.pipeline.api import rebuild_report

    print_line(f"wrote {rebuild_report(run_folder)}")


@app.command()
def demo(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run's folder.")],
    port: Annotated[
        int, typer.Option(help="Port on 127.0.0.1; 0 takes any that is free.", min=0, max=65535)
    ] = 8765,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the page's address, open nothing.")
    ] = False,
) -> None:
    """Try a run's models side by side, on a page of this machine alone; Ctrl-C ends it."""
    from potstill.cli.demo.server import serve

    serve(run_folder, port, open_browser=not no_browser, say=print_line)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Two run folders or more.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The page to write; by default compare.html."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; write a page only where --output says.")
    ] = False,
) -> None:
    """Set runs of one task side by side, and say what of them can be compared."""
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
    for warning in found["warnings"]:
        print_line(f"note: {warning}", "yellow")
    for note in found["notes"]:
        print_line(f"note: {note}")
    print_line(f"wrote {path}")


@app.command()
def doctor() -> None:
    """Versions, CPU, memory, disk, GPU and offline state, and what would be slow here."""
    from potstill.cli.doctor import diagnose

    colours = {"ok": "green", "slow": "yellow", "problem": "red"}
    table = _table("", "check", "found", "advice")
    problems = 0
    for check in diagnose():
        problems += check.status == "problem"
        mark = Text(check.status, style=colours[check.status])
        table.add_row(mark, *map(Text, (check.name, check.value, check.advice or "")))
    terminal.out.print(table)
    if problems:
        raise typer.Exit(1)


def _run(recipe: str, overrides: list[str], output: Path | None, plan: bool) -> None:
    from potstill.pipeline.inputs import check_inputs
    from potstill.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
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
    if reporter.quiet:
        return
    _summary(folder, time.monotonic() - STARTED)


def _summary(folder: Path, seconds: float) -> None:
    from potstill.cli.tables import run_table
    from potstill.reporting.results import read_results

    if (folder / "metrics.json").is_file():
        results = read_results(folder)
        terminal.out.print(run_table(results))
        for finding in results.findings:
            print_line(f"note: {finding}", "yellow")
    minutes = f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
    print_line(f"Done in {minutes}.")
    for name, what in (
        ("model", "student"),
        ("report.html", "report"),
        ("metrics.json", "figures"),
    ):
        if (folder / name).exists():
            print_line(f"  {what + ':':9}{folder / name}")


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
