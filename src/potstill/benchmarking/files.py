"""A benchmark's result in files: all of it as JSON, a row a model and shape as CSV."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterator, Mapping
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
    """Refuse what can't be written before minutes go into measuring it.

    Raises:
        ValueError: a folder that isn't there or can't be written to, or the same file twice.
    """
    for option, path in (("--json", json_file), ("--csv", csv_file)):
        if path is None:
            continue
        if path.is_dir():
            raise ValueError(f"{option}: {path} is a folder: name a file")
        try:
            with tempfile.TemporaryFile(dir=path.absolute().parent):
                pass
        except OSError as error:
            raise ValueError(
                f"{option}: {path} can't be written ({error.strerror}): name another place"
            ) from None
    if json_file and csv_file and json_file.absolute() == csv_file.absolute():
        raise ValueError(f"--json and --csv both name {json_file}: give two files")


def write_benchmark(
    result: Mapping[str, Any], json_file: Path | None, csv_file: Path | None
) -> None:
    """Write a result of `benchmarking.benchmark` to the files that are named.

    Raises:
        OSError: a file can't be written.
    """
    if json_file is not None:
        write_json(json_file, result)
    if csv_file is not None:
        write_text(csv_file, _csv(result))


def _csv(result: Mapping[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(benchmark_rows(result))
    return text.getvalue()


def benchmark_rows(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each model and each latency, throughput and pass over texts, by COLUMNS.

    What a row has no value for is left out; the baseline has no ratios.
    """
    everywhere = {key: result[key] for key in ("threads", "baseline")}
    everywhere |= {key: result["noise"][key] for key in ("wall_over_cpu", "noisy")}
    for name, model in result["models"].items():
        ratios = result["ratios"].get(name, {})
        known = {**model, **ratios}
        about = {key: known[key] for key in _MODEL if known.get(key) is not None}
        start = {"model": name, **everywhere, **about}
        for rest in (
            *_latencies(result, model, ratios),
            *_throughputs(result, model, ratios),
            *_passes(result, name),
        ):
            yield {**start, **rest}


def _latencies(
    result: Mapping[str, Any], model: Mapping[str, Any], ratios: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    for length, points in model["latency_ms"].items():
        intervals = model["latency_intervals_ms"][length]
        row: dict[str, Any] = {"measured": "latency", "tokens": int(length), "batch": 1}
        row |= {key: result[key] for key in ("rounds", "repeats")}
        for name, value in points.items():
            low, high = intervals[name]
            row |= {f"{name}_ms": value, f"{name}_ms_low": low, f"{name}_ms_high": high}
        counts = {"multiply_adds": model["multiply_adds"].get(length)}
        counts["multiply_add_ratio"] = ratios.get("multiply_add_ratio", {}).get(length)
        row |= {key: value for key, value in counts.items() if value is not None}
        yield row | _times(ratios.get("speedup", {}).get(length))


def _throughputs(
    result: Mapping[str, Any], model: Mapping[str, Any], ratios: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    for batch, value in model["throughput_by_batch"].items():
        row = {"measured": "throughput", "tokens": result["throughput_length"], "batch": int(batch)}
        row |= {"rounds": result["rounds"], "repeats": 1, "texts_per_s": value}
        yield row | _times(ratios.get("throughput_by_batch", {}).get(batch))


def _passes(result: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    if "pass" in result:
        timed = result["pass"]
        found = timed["models"][name]
        low, high = found["interval"]
        row = {"measured": "pass", "tokens": found["tokens"], "batch": 1}
        row |= {"rounds": timed["rounds"], "repeats": 1}
        row |= {"pass_s": found["seconds"], "pass_s_low": low, "pass_s_high": high}
        yield row | _times(timed["ratios"].get(name))


def _times(ratio: Mapping[str, Any] | None) -> dict[str, Any]:
    if ratio is None:
        return {}
    ends = {f"times_as_fast_{end}": ratio[end] for end in ("low", "high")}
    return {"times_as_fast": ratio["median"], **ends, "verdict": ratio["verdict"]}
