"""Tables of the terminal: every cell from the result, nothing where there is nothing."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from potstill.cli.tables import (
    benchmark_notes,
    benchmark_table,
    evaluation_table,
    metrics_table,
    suite_table,
)


def rows(table: Table) -> dict[str, list[str]]:
    """Label -> cells, as printed on a wide terminal."""
    columns = [list(column.cells) for column in table.columns]
    assert len(set(map(str, columns[0]))) == len(columns[0])
    return {str(label): [str(c) for c in cells] for label, *cells in zip(*columns, strict=True)}


def headers(table: Table) -> list[str]:
    return [str(column.header) for column in table.columns]


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
        "models": {
            "teacher": scores,
            "student": {"retrieval": {"mrr": 0.12345}, "hidden": {"cosine": None}, "new": {"x": 1}},
        },
        # a baseline without words has no scores where there are no queries or labels
        "references": {"tfidf": {"retrieval": {"mrr": 0.4}}, "other": {}},
        "retention": {"student": {"retrieval.mrr": 0.9731}},
        "intervals": {"student": {"retrieval.mrr": [0.9504, 0.99]}},
    }
    table = evaluation_table(result)
    assert headers(table) == ["", "teacher", "student", "tfidf"]
    assert rows(table) == {
        "retrieval MRR": ["0.500", "0.123", "0.400"],
        "retrieval recall@1": ["0.250", "", ""],
        "similarity of spaces": ["1.000", "", ""],
        "new x": ["", "1.000", ""],
        "kept, retrieval MRR": ["", "97.3% (95.0% to 99.0%)", ""],
    }


def test_small_models_are_counted_in_thousands() -> None:
    models = {"one": measured(1e6, 4.0), "two": measured(23_456, 2.0)}
    table = rows(benchmark_table({"models": models, "ratios": {}}))
    assert table["parameters"] == ["1.0 M", "23.5 k"]
    assert table["weights"] == ["4.0 MB", "93.8 kB"]


def test_a_benchmark_has_ratios_for_all_but_the_baseline() -> None:
    speed = {"median": 1.999, "low": 1.5, "high": 2.25}
    result = {
        "models": {"teacher": measured(10e6, 4.0), "student": measured(6.04e6, 2.0)},
        "ratios": {"student": {"speedup": {"16": speed, "128": speed | {"median": 3.0}}}},
    }
    table = benchmark_table(result)
    assert headers(table) == ["", "teacher", "student"]
    assert rows(table) == {
        "parameters": ["10.0 M", "6.0 M"],
        "weights": ["40.0 MB", "24.2 MB"],
        "peak memory": ["500 MB", "302 MB"],
        "ms at 16 tokens, p50": ["4.00", "2.00"],
        "ms at 16 tokens, p95": ["8.00", "4.00"],
        "times as fast at 16": ["", "2.00 (1.50 to 2.25)"],
        "ms at 128 tokens, p50": ["36.00", "18.00"],
        "ms at 128 tokens, p95": ["36.00", "18.00"],
        "times as fast at 128": ["", "3.00 (1.50 to 2.25)"],
        "texts a second": ["250.0", "500.0"],
    }


def whole_benchmark() -> dict[str, Any]:
    """With all that a benchmark measures, passes over texts too."""
    model = {
        **measured(1e6, 4.0),
        **{"folder_bytes": 5e6, "load_s": 0.256},
        "multiply_adds": {"16": 85_000_000_000},
        "latency_ms": {"16": {"p50": 4.0, "p95": 5.0, "p99": 6.0}},
        "latency_intervals_ms": {"16": {"p50": [3.5, 4.5], "p95": [4, 6], "p99": [5, 7]}},
        "throughput_by_batch": {"1": 100.0, "8": 200.0},
    }
    sure = {"median": 2.0, "low": 1.5, "high": 2.25, "verdict": "faster"}
    unsure = {"median": 1.0, "low": 0.9, "high": 1.1, "verdict": "can't tell"}
    speed = {"speedup": {"16": unsure}, "throughput_by_batch": {"1": sure, "8": unsure}}
    passes = {
        "a": {"seconds": 10.0, "interval": [9.0, 11.0], "tokens": 12345, "cut": 0},
        "b": {"seconds": 5.0, "interval": [4.0, 6.0], "tokens": 12000, "cut": 3},
    }
    return {
        **{"threads": 1, "rounds": 10, "repeats": 5, "throughput_length": 128, "baseline": "a"},
        "models": {"a": model, "b": model},
        "ratios": {"b": speed},
        "pass": {
            **{"texts": 1500, "over": "stsb.tsv", "max_length": 64},
            **{"models": passes, "ratios": {"b": sure}},
        },
    }


def test_a_whole_benchmark_says_what_it_can_t_tell() -> None:
    assert rows(benchmark_table(whole_benchmark())) == {
        "parameters": ["1.0 M"] * 2,
        "weights": ["4.0 MB"] * 2,
        "folder": ["5.0 MB"] * 2,
        "time to load": ["0.26 s"] * 2,
        "peak memory": ["50 MB"] * 2,
        "multiply-adds, 16 tokens": ["85.0 G"] * 2,
        "ms at 16 tokens, p50": ["4.00 (3.50 to 4.50)"] * 2,
        "ms at 16 tokens, p95": ["5.00"] * 2,
        "ms at 16 tokens, p99": ["6.00"] * 2,
        "times as fast at 16": ["", "1.00 (0.90 to 1.10), can't tell"],
        "texts a second, batches of 1": ["100.0"] * 2,
        "times as fast, batches of 1": ["", "2.00 (1.50 to 2.25)"],
        "texts a second, batches of 8": ["200.0"] * 2,
        "times as fast, batches of 8": ["", "1.00 (0.90 to 1.10), can't tell"],
        "a pass over 1500 texts": ["10.00 s (9.00 to 11.00)", "5.00 s (4.00 to 6.00)"],
        "tokens in it": ["12,345", "12,000"],
        "times as fast, the pass": ["", "2.00 (1.50 to 2.25)"],
    }


def test_notes_say_how_it_was_measured() -> None:
    result = whole_benchmark()
    how, passes = benchmark_notes(result)
    assert how.startswith("1 thread a process; latency at batch 1, 10 interleaved rounds of 5; ")
    assert "texts of 128 tokens; ratios to a, " in how
    assert passes == (
        "passes over 1500 texts of stsb.tsv, one at a time, cut at 64 tokens (3 of b), "
        "tokenising left out"
    )
    result["pass"]["models"]["b"]["cut"] = 0
    assert "cut at 64 tokens (none was longer)" in benchmark_notes(result)[1]
    del result["pass"]
    assert len(benchmark_notes(result | {"threads": 4})) == 1
    assert benchmark_notes(result | {"threads": 4})[0].startswith("4 threads a process; ")


def metrics(folder: Path, content: dict[str, Any]) -> Table:
    path = folder / "metrics.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return metrics_table(path)


def test_a_runs_metrics(tmp_path: Path) -> None:
    loss = {"masked_lm": {"loss": 2.0, "top1": 0.5}}
    table = metrics(
        tmp_path,
        {
            "models": {
                "teacher": measured(10e6, 4.0) | {"scores": loss},
                "student": measured(5e6, 2.0) | {"scores": {"masked_lm": {"loss": None}}},
            },
            "comparisons": {
                "student": {
                    "speedup": {"16": 2.0, "128": None},
                    "retention_by_score": {"masked_lm.top1": 0.9731},
                }
            },
        },
    )
    assert headers(table) == ["", "teacher", "student"]
    assert rows(table) == {
        "parameters": ["10.0 M", "5.0 M"],
        "weights": ["40.0 MB", "20.0 MB"],
        "ms at 16 tokens, p50": ["4.00", "2.00"],  # 16 before 128
        "ms at 128 tokens, p50": ["36.00", "18.00"],
        "texts a second": ["250.0", "500.0"],
        "masked-LM loss": ["2.000", ""],  # a loss that was not finite
        "masked-LM top-1": ["0.500", ""],
        "times as fast at 16": ["", "2.00"],
        "kept, masked-LM top-1": ["", "97.3%"],
    }
    assert list(rows(table))[2:4] == ["ms at 16 tokens, p50", "ms at 128 tokens, p50"]


def test_a_run_of_a_task_has_what_takes_no_model_and_differences(tmp_path: Path) -> None:
    scored = {
        name: {"scores": {"regression": {"spearman": value}}}
        for name, value in {"teacher": 0.9, "student": 0.8, "plain": 0.75}.items()
    }
    plain = {"metric": "spearman", "difference": 0.05, "interval": [-0.01, 0.11]}
    table = metrics(
        tmp_path,
        {
            "models": scored,
            "comparisons": {},
            "references": {"tfidf": {"regression": {"spearman": 0.5}}},
            "differences": {"plain": plain, "tfidf": {"difference": 0.3, "interval": None}},
        },
    )
    assert headers(table) == ["", "teacher", "student", "plain", "tfidf"]
    assert rows(table) == {
        "Spearman": ["0.900", "0.800", "0.750", "0.500"],
        "student less it": ["", "", "+0.050", "+0.300"],
        "  95% from": ["", "", "-0.010", ""],
        "  to": ["", "", "+0.110", ""],
    }


def test_what_was_not_measured_has_no_row(tmp_path: Path) -> None:
    assert rows(metrics(tmp_path, {"models": {"teacher": {}}, "comparisons": {}})) == {}


def test_names_with_brackets_are_no_markup() -> None:
    console = Console(width=120, record=True, file=StringIO())
    scores = {"a [red]task[/red]": {"[/x]": 0.5}}
    console.print(evaluation_table({"models": {"runs/[bold]a[/bold]": scores}}))
    assert [line.split() for line in console.export_text().splitlines()] == [
        ["runs/[bold]a[/bold]"],
        ["a", "[red]task[/red]", "[/x]", "0.500"],
    ]


def test_tables_can_be_printed() -> None:
    console = Console(width=60, record=True, file=StringIO())
    console.print(evaluation_table({"models": {"teacher": {"retrieval": {"mrr": 0.5}}}}))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines == [["teacher"], ["retrieval", "MRR", "0.500"]]


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
    return {**found, **changes}


def test_a_suite_shows_medians_ranges_and_shares() -> None:
    table = suite_table(suite())
    assert headers(table) == ["", "teacher", "half", "half kept"]
    same = "80.0 (80.0 to 80.0)"
    assert rows(table) == {
        "MRPC accuracy": [same, same, "90.0%"],
        "MRPC F1": ["90.0 (90.0 to 90.0)"] * 2 + ["95.0%"],
        "MRPC score": ["85.0 (85.0 to 90.0)"] * 2 + ["92.5%"],
        "WNLI accuracy": ["54.0 (50.0 to 60.0)"] * 2 + ["none"],
        "average of 2 tasks": ["70.0", "70.0", "96.0%"],
        "average without WNLI": ["85.0", "85.0", "97.0%"],
        "where there is retention": ["", "", "92.5%"],
    }


def test_a_quick_look_and_a_small_set_are_marked() -> None:
    kept = suite()["retention"]["half"]
    kept["tasks"]["wnli"] = {"accuracy": 1.02, "score": 1.02}
    table = suite_table(suite(partial=True, retention={"half": kept}))
    assert headers(table)[0] == "PARTIAL"
    assert rows(table)["WNLI accuracy"][-1] == "102.0% (too small a set)"
