"""Write a benchmark's result: all of it as JSON, a row per model and shape as CSV."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.benchmarking.statistics import PERCENTILES
from potstill.storage.files import write_json, write_text

_MODEL = (
    *("parameters", "weight_bytes", "folder_bytes", "load_s", "peak_memory_bytes"),
    *("size_ratio", "parameter_ratio"),
)
COLUMNS = (
    *("model", "measured", "tokens", "batch", "threads", "rounds", "repeats"),
    *(f"{name}_ms{end}" for name in PERCENTILES for end in ("", "_low", "_high")),
    *("texts_per_s", "pass_s", "pass_s_low", "pass_s_high"),
    *("times_as_fast", "times_as_fast_low", "times_as_fast_high", "verdict"),
    *("multiply_adds", "multiply_add_ratio"),
    *_MODEL,
    *("baseline", "wall_over_cpu", "noisy"),
)


def check_targets(json_file: Path | None, csv_file: Path | None) -> None:
    """Refuse files that cannot be written, before minutes go into measuring.

    Args:
        json_file, csv_file: The files; None: none is written.

    Raises:
        ValueError: A path is a folder, cannot be written, or is given twice.
    """
    for option, path in (("--json", json_file), ("--csv", csv_file)):
        if path is None:
            continue
        if path.is_dir():
            raise ValueError(f"{option}: {path} is a folder. Name a file.")
        try:
            with tempfile.TemporaryFile(dir=path.absolute().parent):
                pass
        except OSError as error:
            raise ValueError(
                f"{option}: {path} cannot be written ({error.strerror}). Name another file."
            ) from None
    if json_file and csv_file and json_file.absolute() == csv_file.absolute():
        raise ValueError(f"--csv: {json_file} is also given to --json. Name two files.")


def write_benchmark(
    result: Mapping[str, Any], json_file: Path | None, csv_file: Path | None
) -> None:
    """Write the result of `benchmarking.benchmark` to the files that are named.

    Args:
        result: The whole result.
        json_file, csv_file: The files; None: none is written.

    Raises:
        OSError: A file cannot be written.
    """
    if json_file is not None:
        write_json(json_file, result)
    if csv_file is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(benchmark_rows(result))
        write_text(csv_file, text.getvalue())


def benchmark_rows(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Return a row for each model and each latency, throughput and pass over texts, by COLUMNS.

    A row has no key where it has no value; the baseline has no ratios.
    """
    everywhere = {key: result[key] for key in ("threads", "baseline")}
    everywhere |= {key: result["noise"][key] for key in ("wall_over_cpu", "noisy")}
    for name, model in result["models"].items():
        ratios = result["ratios"].get(name, {})
        about = {key: {**model, **ratios}.get(key) for key in _MODEL}
        for row in _measured(result, name, model, ratios):
            whole = {"model": name, **everywhere, **about, **row}
            yield {key: value for key, value in whole.items() if value is not None}


def _measured(
    result: Mapping[str, Any], name: str, model: Mapping[str, Any], ratios: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    rounds = {"rounds": result["rounds"]}
    counts, fewer = model["multiply_adds"], ratios.get("multiply_add_ratio", {})
    for length, points in model["latency_ms"].items():
        row = {"measured": "latency", "tokens": int(length), "batch": 1, **rounds}
        row["repeats"] = result["repeats"]
        for point, value in points.items():
            ends = model["latency_intervals_ms"][length][point]
            row |= {f"{point}_ms": value} | _ends(f"{point}_ms", ends)
        row |= {"multiply_adds": counts.get(length), "multiply_add_ratio": fewer.get(length)}
        yield row | _times(ratios.get("speedup", {}).get(length))
    for batch, value in model["throughput_by_batch"].items():
        row = {"measured": "throughput", "tokens": result["throughput_length"], "batch": int(batch)}
        row |= {**rounds, "repeats": 1, "texts_per_s": value}
        yield row | _times(ratios.get("throughput_by_batch", {}).get(batch))
    if "pass" in result:
        timed, found = result["pass"], result["pass"]["models"][name]
        row = {"measured": "pass", "tokens": found["tokens"], "batch": 1, "repeats": 1}
        row |= {"rounds": timed["rounds"], "pass_s": found["seconds"]}
        yield row | _ends("pass_s", found["interval"]) | _times(timed["ratios"].get(name))


def _ends(key: str, interval: Sequence[float]) -> dict[str, Any]:
    return dict(zip((f"{key}_low", f"{key}_high"), interval, strict=True))


def _times(ratio: Mapping[str, Any] | None) -> dict[str, Any]:
    if ratio is None:
        return {}
    ends = _ends("times_as_fast", (ratio["low"], ratio["high"]))
    return {"times_as_fast": ratio["median"], **ends, "verdict": ratio["verdict"]}
