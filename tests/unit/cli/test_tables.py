"""Tables of the terminal: the report's rows, every cell from the result, in 80 columns."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

from fake_run import fake_run
from rich.console import Console
from rich.table import Table

from potstill.cli.tables import (
    benchmark_notes,
    result_table,
    run_table,
    runs_table,
    suite_table,
)
from potstill.reporting import compare_runs
from potstill.reporting.metrics_json import metrics_of
from potstill.reporting.results import read_results
from potstill.reporting.table import comparison_rows

TIMES = "\N{MULTIPLICATION SIGN}"


def rows(table: Table) -> dict[str, list[str]]:
    """Label -> cells, as printed on a wide terminal; headings have no cells."""
    columns = [list(column.cells) for column in table.columns]
    found = [
        (str(label).replace("\n", " "), list(map(str, cells)))
        for label, *cells in zip(*columns, strict=True)
    ]
    assert len({label for label, _ in found}) == len(found)
    return {
        label: [cell.replace("\n", " ") for cell in cells] for label, cells in found if any(cells)
    }


def headers(table: Table) -> list[str]:
    return [str(column.header) for column in table.columns]


def printed(table: Table, width: int) -> list[str]:
    console = Console(width=width, record=True, file=StringIO())
    console.print(table)
    return console.export_text().splitlines()


def measured(parameters: float, milliseconds: float) -> dict[str, Any]:
    latency = {"p50": milliseconds, "p95": 2 * milliseconds}
    return {
        "parameters": parameters,
        "weight_bytes": 4 * parameters,
        "peak_memory_bytes": 50 * parameters,
        "latency_ms": {"16": latency, "128": {"p50": 9 * milliseconds, "p95": 9 * milliseconds}},
        "throughput_per_s": 1000 / milliseconds,
    }


def test_an_evaluation_has_a_column_a_model_and_the_references_last() -> None:
    scores = {"retrieval": {"mrr": 0.5, "recall_at_1": 0.25}, "similarity": {"pearson": 1.0}}
    result = {
        **{"task": "sentence_embedding", "records": 1234, "baseline": "teacher"},
        "models": {
            "teacher": scores,
            "student": {"retrieval": {"mrr": 0.12345}, "hidden": {"cosine": None}, "new": {"x": 1}},
        },
        # a baseline without words has no scores where there are no queries or labels
        "references": {"tfidf": {"retrieval": {"mrr": 0.4}}},
        "retention": {"student": {"retrieval.mrr": 0.9731}},
        "intervals": {"student": {"retrieval.mrr": [0.9504, 0.99]}},
    }
    table = result_table("evaluate", result)
    assert headers(table) == ["", "teacher", "student", "TF-IDF"]
    assert rows(table) == {
        "Retrieval MRR": ["0.500", "0.123", "0.400"],
        "Retrieval recall@1": ["0.250", "", ""],
        "Similarity matrix, correlation": ["1.000", "", ""],
        "Hidden cosine": ["", "not finite", ""],
        "new: x": ["", "1.000", ""],
        "Kept: Retrieval MRR": ["", "97.3% (95.0 to 99.0)", ""],
    }
    # the texts are the user's own, held out from nothing
    assert "Scores on 1,234" in printed(table, 80)[1]


def benchmark(**changes: Any) -> dict[str, Any]:
    shape = {"threads": 1, "baseline": "teacher", "throughput_batch": 8, "throughput_length": 128}
    return {**shape, "models": {}, "ratios": {}, **changes}


def test_small_models_are_counted_in_parts_of_a_million() -> None:
    models = {"teacher": measured(1e6, 4.0), "two": measured(23_456, 2.0)}
    table = rows(result_table("benchmark", benchmark(models=models)))
    assert table["Parameters (millions)"] == ["1.00", "0.0235"]
    assert table["Weights (MB)"] == ["4.00", "0.0938"]


def test_a_benchmark_has_ratios_for_all_but_the_baseline() -> None:
    speed = {"median": 1.999, "low": 1.5, "high": 2.25}
    speeds = {"16": speed, "128": speed | {"median": 3.0}}
    result = benchmark(
        models={"teacher": measured(10e6, 4.0), "student": measured(6.04e6, 2.0)},
        ratios={"student": {"speedup": speeds, "size_ratio": 0.604}},
    )
    table = result_table("benchmark", result)
    assert headers(table) == ["", "teacher", "student"]
    assert rows(table) == {
        "Parameters (millions)": ["10.0", "6.04"],
        "Weights (MB)": ["40.0", "24.2"],
        "Latency of one text of 16 tokens (ms)": ["4.00 (p95 8.00)", "2.00 (p95 4.00)"],
        "Latency of one text of 128 tokens (ms)": ["36.0 (p95 36.0)", "18.0 (p95 18.0)"],
        "Throughput, 8 texts of 128 tokens at once (texts/s)": ["250", "500"],
        "Peak memory of the process (MB)": ["500", "302"],
        "Speedup at 16 tokens": ["", f"2.00{TIMES} (1.50 to 2.25)"],
        "Speedup at 128 tokens": ["", f"3.00{TIMES} (1.50 to 2.25)"],
        "Weights, share of the bytes": ["", "0.60"],
    }


def whole_benchmark() -> dict[str, Any]:
    """With all that a benchmark measures, passes over texts too."""
    model = {
        **measured(1e6, 4.0),
        **{"folder_bytes": 5e6, "load_s": 0.256},
        "multiply_adds": {"16": 85_000_000_000},
        "latency_ms": {"16": {"p50": 4.0, "p95": 5.0, "p99": 6.0}},
        "latency_intervals_ms": {"16": {"p50": [3.5, 4.5], "p95": [4, 6], "p99": [5, 7]}},
        "throughput_by_batch": {"1": 100.0, "8": 250.0},
    }
    sure = {"median": 2.0, "low": 1.5, "high": 2.25, "verdict": "faster"}
    unsure = {"median": 1.0, "low": 0.9, "high": 1.1, "verdict": "can't tell"}
    speed = {"speedup": {"16": unsure}, "throughput_by_batch": {"1": sure, "8": unsure}}
    passes = {
        "a": {"seconds": 10.0, "interval": [9.0, 11.0], "tokens": 12345, "cut": 0},
        "b": {"seconds": 5.0, "interval": [4.0, 6.0], "tokens": 12000, "cut": 3},
    }
    return benchmark(
        **{"rounds": 10, "repeats": 5, "baseline": "a"},
        models={"a": model, "b": model},
        ratios={"b": {**speed, "throughput": unsure, "size_ratio": 1.0}},
        **{
            "pass": {
                **{"texts": 1500, "over": "stsb.tsv", "max_length": 64},
                **{"models": passes, "ratios": {"b": sure}},
            }
        },
    )


def test_a_whole_benchmark_says_what_it_can_t_tell() -> None:
    assert rows(result_table("benchmark", whole_benchmark())) == {
        "Parameters (millions)": ["1.00"] * 2,
        "Weights (MB)": ["4.00"] * 2,
        "All files (MB)": ["5.00"] * 2,
        "Time to load (s)": ["0.256"] * 2,
        "Peak memory of the process (MB)": ["50.0"] * 2,
        "Multiply-adds of one text of 16 tokens (millions)": ["85,000"] * 2,
        "Latency of one text of 16 tokens (ms)": ["4.00 (3.50 to 4.50, p95 5.00, p99 6.00)"] * 2,
        "Speedup at 16 tokens": ["", f"1.00{TIMES} (0.90 to 1.10, can't tell)"],
        "Throughput, 1 texts of 128 tokens at once (texts/s)": ["100"] * 2,
        "Throughput with batches of 1, times as high": ["", f"2.00{TIMES} (1.50 to 2.25)"],
        "Throughput, 8 texts of 128 tokens at once (texts/s)": ["250"] * 2,
        "Throughput, times as high": ["", f"1.00{TIMES} (0.90 to 1.10, can't tell)"],
        "A pass over 1,500 texts, one at a time (s)": [
            "10.0 (9.00 to 11.00)",
            "5.00 (4.00 to 6.00)",
        ],
        "Tokens of that pass": ["12,345", "12,000"],
        "Speedup of the pass over texts": ["", f"2.00{TIMES} (1.50 to 2.25)"],
        "Weights, share of the bytes": ["", "1.00"],
    }


def test_notes_say_how_it_was_measured() -> None:
    result = whole_benchmark()
    how, passes = benchmark_notes(result)
    assert how.startswith(
        "Each process uses 1 thread. Latency is measured at batch size 1 in 10 interleaved rounds "
        "of 5 passes, throughput with texts of 128 tokens. Ratios are relative to a; "
    )
    assert passes == (
        "Passes over 1,500 texts of stsb.tsv take one text at a time, without tokenization. "
        "Texts are truncated at 64 tokens (3 for b)."
    )
    result["pass"]["models"]["b"]["cut"] = 0
    assert "truncated at 64 tokens (none is longer)." in benchmark_notes(result)[1]
    del result["pass"]
    assert len(benchmark_notes(result | {"threads": 4})) == 1
    assert benchmark_notes(result | {"threads": 4})[0].startswith("Each process uses 4 threads. ")


def change(run: Path, stage: str, **values: Any) -> None:
    path = run / "stages" / stage / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_run_s_table_has_all_rows_and_columns_of_the_report(tmp_path: Path) -> None:
    results = read_results(fake_run(tmp_path))
    table = run_table(results)
    assert headers(table) == ["", "teacher", "student", "untrained", "TF-IDF"]
    shown = rows(table)
    for row in comparison_rows(results, metrics_of(results)):
        cells = {"teacher": "", "student": "", "untrained": "", "tfidf": ""}
        for name, cell in row.cells.items():
            note = cell.note.replace("\N{EN DASH}", " to ")
            cells[name] = f"{cell.text} ({note})" if note else cell.text
        assert shown[row.label] == list(cells.values())


def test_a_run_of_a_task_has_every_seed_what_takes_no_model_and_differences(tmp_path: Path) -> None:
    scored = {
        name: {"regression": {"spearman": sum(seeds) / len(seeds), "seeds": seeds}}
        for name, seeds in {"teacher": [0.9], "student": [0.7, 0.9, 0.8], "plain": [0.75]}.items()
    }
    plain = {"metric": "spearman", "difference": 0.05, "interval": [-0.01, 0.11]}
    tfidf = {"metric": "spearman", "difference": 0.3, "interval": None}
    result = {
        **{"task": "regression", "metric": "spearman", "models": scored, "baseline": "teacher"},
        "references": {"tfidf": {"regression": {"spearman": 0.5}}},
        "differences": {"plain": plain, "tfidf": tfidf},
    }
    run = fake_run(tmp_path)
    for folder in ("03-evaluate", "04-benchmark"):
        (run / "stages" / folder / "result.json").write_text(json.dumps(result))
    (run / "stages/04-benchmark/result.json").unlink()
    [*_, scores, _, differences] = rows_in_order(run_table(read_results(run)))
    name = "Spearman's correlation"
    assert scores == [name, "0.900", "0.800 (0.700, 0.900, 0.800)", "0.750", "0.500"]
    assert differences == [name, "", "", "+0.050 (-0.010 to +0.110)", "+0.300"]


def rows_in_order(table: Table) -> list[list[str]]:
    columns = [[str(cell).replace("\n", " ") for cell in column.cells] for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def test_what_was_not_measured_has_no_row() -> None:
    assert rows(result_table("evaluate", {"models": {"teacher": {}}})) == {}


def test_seven_models_fit_into_80_columns_with_their_numbers_whole(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    names = ["teacher", "student", "untrained", "plain", "pruned", "onnx", "int8"]
    found = {
        "03-evaluate": ("models", "retention", "intervals"),
        "04-benchmark": ("models", "ratios"),
    }
    for stage, keys in found.items():
        result = json.loads((run / "stages" / stage / "result.json").read_text())
        for key in keys:
            result[key] = {name: result[key].get(name, result[key]["student"]) for name in names}
        change(run, stage, **{key: result[key] for key in keys}, references={})
    table = run_table(read_results(run))
    lines = printed(table, 80)
    assert max(map(len, lines)) <= 80
    wanted = [cell.split() for row in rows(table).values() for cell in row]
    words = {word for line in lines for word in line.split()}
    assert {word for cell in wanted for word in cell if re.search(r"\d", word)} <= words


def test_runs_stand_side_by_side(tmp_path: Path) -> None:
    one, two = (fake_run(tmp_path / name) for name in ("one", "two"))
    recipe = two / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 1\n", "seed: 2\n", 1))
    table = runs_table(compare_runs([one, two]))
    assert headers(table) == ["", "one", "two"]
    shown = rows_in_order(table)
    assert ["The student", "student", "student"] in shown
    assert ["Kept: Retrieval MRR", *["98.1% (96.8 to 99.3)"] * 2] in shown
    assert shown[-2:] == [["In the recipes", "", ""], ["seed", "1", "2"]]


def test_names_with_brackets_are_no_markup() -> None:
    scores = {"a [red]task[/red]": {"[/x]": 0.5}}
    table = result_table("evaluate", {"models": {"runs/[bold]a[/bold]": scores}, "baseline": "b"})
    shown = " ".join(" ".join(printed(table, 120)).split())
    assert shown == "runs/[bold]a[/bold] Scores a [red]task[/red]: 0.500 [/x]"


def suite(**changes: Any) -> dict[str, Any]:
    def one(*values: float) -> dict[str, Any]:
        middle = sorted(values)[len(values) // 2]
        return {"median": middle, "min": min(values), "max": max(values), "all": list(values)}

    own = {"accuracy": one(0.5, 0.6, 0.54), "score": one(0.5, 0.6, 0.54)}
    pair = {"accuracy": one(0.8, 0.8, 0.8), "f1": one(0.9, 0.9, 0.9), "score": one(0.85, 0.85, 0.9)}
    models = {
        name: {"tasks": {"mrpc": pair, "wnli": own}, "average": {"all": 0.7, "without_wnli": 0.85}}
        for name in ("teacher", "half")
    }
    kept = {
        "tasks": {
            "mrpc": {"accuracy": 0.9, "f1": 0.95, "score": 0.925},
            "wnli": {"accuracy": None, "score": None},
        },
        "overall": {"all": 0.96, "without_wnli": 0.97, "above_constant": 0.925},
    }
    tasks = {
        "mrpc": {"title": "MRPC", "metrics": ["accuracy", "f1"], "small": False},
        "wnli": {"title": "WNLI", "metrics": ["accuracy"], "small": True},
    }
    found = {"models": models, "tasks": tasks, "retention": {"half": kept}, "partial": False}
    return {**found, "suite": "glue", **changes}


def test_a_suite_shows_medians_ranges_and_shares() -> None:
    table = suite_table(suite())
    assert headers(table) == ["", "teacher", "half"]
    same = "80.0 (80.0 to 80.0)"
    assert rows(table) == {
        "MRPC, accuracy": [same, "80.0 (80.0 to 80.0, 90.0% kept)"],
        "MRPC, F1": ["90.0 (90.0 to 90.0)", "90.0 (90.0 to 90.0, 95.0% kept)"],
        "MRPC, score": ["85.0 (85.0 to 90.0)", "85.0 (85.0 to 90.0, 92.5% kept)"],
        "WNLI, accuracy, a small set": ["54.0 (50.0 to 60.0)"] * 2,
        "Average of 2 tasks": ["70.0", "70.0 (96.0% kept)"],
        "Average without WNLI": ["85.0", "85.0 (97.0% kept)"],
        "Where there is retention": ["", "92.5% kept"],
    }


def test_a_quick_look_and_a_small_set_are_marked() -> None:
    kept = suite()["retention"]["half"]
    kept["tasks"]["wnli"] = {"accuracy": 1.02, "score": 1.02}
    found = suite(partial=True, partial_reasons=["2 of 9 tasks"], retention={"half": kept})
    table = suite_table(found)
    assert headers(table)[0] == "PARTIAL"
    label = "WNLI, accuracy, a small set"
    assert rows(table)[label][-1] == "54.0 (50.0 to 60.0, 102.0% kept)"
