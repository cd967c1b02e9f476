"""A benchmark's result as rows: each number in its column, ratios for all but the baseline."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from potstill.benchmarking.files import COLUMNS, benchmark_rows, write_benchmark


def result() -> dict[str, Any]:
    def model(milliseconds: float, size: int) -> dict[str, Any]:
        points = {"p50": milliseconds, "p95": 2 * milliseconds, "p99": 3 * milliseconds}
        return {
            **{"parameters": size, "weight_bytes": 4 * size, "folder_bytes": 5 * size},
            **{"load_s": 0.5, "peak_memory_bytes": None, "throughput_per_s": 80.0},
            "multiply_adds": {"16": 100 * size if size > 5 else None},
            "latency_ms": {"16": points},
            "latency_intervals_ms": {"16": {n: [v - 1, v + 1] for n, v in points.items()}},
            "throughput_by_batch": {"1": 50.0, "8": 80.0},
        }

    ratio = {"median": 2.0, "low": 1.5, "high": 2.5, "verdict": "faster"}
    timed = {"seconds": 9.0, "interval": [8.0, 10.0], "tokens": 700, "cut": 0}
    return {
        **{"threads": 1, "baseline": "a", "rounds": 10, "repeats": 5, "throughput_length": 128},
        "noise": {"wall_over_cpu": 1.01, "noisy": False, "message": None},
        "models": {"a": model(4.0, 10), "b": model(2.0, 5)},
        "ratios": {
            "b": {
                **{"speedup": {"16": ratio}, "size_ratio": 0.5, "parameter_ratio": 0.5},
                "throughput_by_batch": {"1": ratio, "8": ratio | {"verdict": "can't tell"}},
                "multiply_add_ratio": {},
            }
        },
        "pass": {"rounds": 3, "models": {"a": timed, "b": timed}, "ratios": {"b": ratio}},
    }


def test_a_row_for_each_model_and_shape() -> None:
    rows = list(benchmark_rows(result()))
    shapes = [("latency", 16, 1), ("throughput", 128, 1), ("throughput", 128, 8), ("pass", 700, 1)]
    keys = ("measured", "tokens", "batch")
    assert [(row["model"], *(row[key] for key in keys)) for row in rows] == [
        (name, *shape) for name in "ab" for shape in shapes
    ]
    assert all(set(row) <= set(COLUMNS) for row in rows)
    first, latency, batched, passed = rows[0], rows[4], rows[6], rows[7]
    assert first == {
        **{"model": "a", "measured": "latency", "tokens": 16, "batch": 1, "threads": 1},
        **{"rounds": 10, "repeats": 5, "multiply_adds": 1000},
        **{"p50_ms": 4.0, "p50_ms_low": 3.0, "p50_ms_high": 5.0},
        **{"p95_ms": 8.0, "p95_ms_low": 7.0, "p95_ms_high": 9.0},
        **{"p99_ms": 12.0, "p99_ms_low": 11.0, "p99_ms_high": 13.0},
        **{"parameters": 10, "weight_bytes": 40, "folder_bytes": 50, "load_s": 0.5},
        **{"baseline": "a", "wall_over_cpu": 1.01, "noisy": False},
    }
    assert (latency["times_as_fast"], latency["verdict"]) == (2.0, "faster")
    assert "multiply_adds" not in latency
    assert (latency["size_ratio"], latency["parameter_ratio"]) == (0.5, 0.5)
    assert (batched["texts_per_s"], batched["verdict"]) == (80.0, "can't tell")
    assert (passed["pass_s"], passed["pass_s_low"], passed["times_as_fast_high"]) == (9.0, 8.0, 2.5)


def test_files_hold_the_result_and_its_rows(tmp_path: Path) -> None:
    write_benchmark(result(), tmp_path / "r.json", tmp_path / "r.csv")
    assert json.loads((tmp_path / "r.json").read_text()) == result()
    with (tmp_path / "r.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    expected = [
        {column: str(row.get(column, "")) for column in COLUMNS} for row in benchmark_rows(result())
    ]
    assert rows == expected
    write_benchmark(result(), None, None)
    assert len(list(tmp_path.iterdir())) == 2
