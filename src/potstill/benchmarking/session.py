"""Measure size and speed of models, with a process for each, in interleaved rounds.

The parent only orchestrates: it sends one JSON command per line to a child and reads one JSON
answer per line, so nothing computes while a child is being timed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill.benchmarking.multiply_adds import multiply_adds
from potstill.benchmarking.process import Child
from potstill.benchmarking.rounds import Timings, throughput_length, time_rounds
from potstill.benchmarking.statistics import (
    judge_noise,
    latency_intervals,
    latency_percentiles,
    ratio_with_interval,
    verdict,
    wall_over_cpu,
)
from potstill.benchmarking.texts import CutTexts, read_texts, text_length, write_tokens
from potstill.data.sources import describe
from potstill.models.finite import check_stored, refuse_not_finite
from potstill.recipe import Benchmark
from potstill.storage.model_folders import check_folder
from potstill.storage.onnx_files import (
    ONNX,
    count_parameters,
    folder_of,
    graph_files,
    is_onnx,
    not_finite_in,
    read_graph,
    require_onnx,
    weight_bytes,
)
from potstill.storage.places import Folder


def benchmark(
    models: Sequence[Folder] | Mapping[str, Folder],
    settings: Benchmark | None = None,
    progress: Callable[[float], None] | None = None,
    *,
    fit: bool = False,
) -> dict[str, Any]:
    """Measure size, latency, throughput, multiply-adds and peak memory of models on the CPU.

    Folders run in PyTorch, in float32; .onnx files run in onnxruntime, as they are.

    Rounds are interleaved: in each round every model runs every shape, in an order that rotates. A
    machine that slows down meets all models alike, and ratios to the first model are taken within
    a round.

    Args:
        models: Folders with config.json and *.safetensors, or FOLDER/onnx/NAME.onnx; a mapping
            gives them names. The first is the baseline.
        settings: Lengths in tokens, rounds, repeats, threads; `models` selects and orders names
            (null: all of them), and `baseline` is not read. None: the defaults.
        progress: Receives the share that is done, 0 to 1.
        fit: Cut lengths above a model's maximum sequence length to what all models take, and say
            so in `notes`, instead of refusing them.

    Returns:
        docs/benchmark.md explains each number: `models` (latency in ms at batch 1 and throughput in
        texts per second with 95% bootstrap intervals, multiply-adds of a text, bytes), `ratios` to
        the first with intervals and verdicts, `pass` where texts are given (seconds), `noise`,
        `notes`, and the `raw` samples in ms.

    Raises:
        ValueError: No model is given, a folder holds no model, a model does not load, a length is
            above a model's maximum sequence length, or text cannot be read.
        BenchmarkFailed: A child process died while it was being timed, or memory ran out.
    """
    settings = settings or Benchmark()
    folders = _chosen(models, settings.models)
    settings = settings.model_copy(update={"baseline": next(iter(folders))})
    for name, folder in folders.items():
        _check_folder(name, folder)
    with contextlib.ExitStack() as stack:
        texts = read_texts(settings.pass_over) if settings.pass_over else []
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # One after another, so that no model loads while another does.
        children = {
            name: stack.enter_context(Child(name, folder, settings.threads))
            for name, folder in folders.items()
        }
        settings, notes = _fitting(settings, children, fit)
        cut = {}
        if settings.pass_over is not None:
            length = text_length(settings.pass_over, None)
            for number, (name, model) in enumerate(folders.items()):
                target = scratch / f"{number}.npz"
                cut[name] = write_tokens(texts, model, length, target)
        timings = time_rounds(children, settings, cut, progress or (lambda share: None))
    measured = {name: _measured(child, settings, timings) for name, child in children.items()}
    return _result(settings, measured, timings, notes) | _pass(settings, timings, cut)


# --- results --------------------------------------------------------------------------------------


def _measured(child: Child, settings: Benchmark, timings: Timings) -> dict[str, Any]:
    name, model = child.name, child.folder
    latency, throughput = timings.latency[name], timings.throughput[name]
    by_batch = {batch: float(np.median(rounds)) for batch, rounds in throughput.items()}
    graph = is_onnx(model)
    return {
        "parameters": count_parameters(model) if graph else int(child.ready["parameters"]),
        "multiply_adds": multiply_adds(model, settings.lengths),
        **_sizes(model),
        "load_s": round(child.ready["load_s"], 4),
        "peak_memory_bytes": timings.peak_memory[name],
        "latency_ms": {n: latency_percentiles(rounds) for n, rounds in latency.items()},
        "latency_intervals_ms": {n: latency_intervals(rounds) for n, rounds in latency.items()},
        "throughput_per_s": by_batch[str(settings.throughput_batch)],
        "throughput_by_batch": by_batch,
    }


def _sizes(model: Path) -> dict[str, int]:
    """Return bytes; the `folder_bytes` of an .onnx file are what is shipped with it."""
    weights, graph = weight_bytes(model), is_onnx(model)
    around = folder_of(model) if graph else model
    files = (path for path in around.rglob("*") if path.is_file())
    if graph:
        files = (p for p in files if p.suffix != ".safetensors" and p.parent.name != ONNX)
    shipped = sum(path.stat().st_size for path in files) + (weights if graph else 0)
    return {"weight_bytes": weights, "folder_bytes": shipped}


def _result(
    settings: Benchmark,
    measured: dict[str, dict[str, Any]],
    timings: Timings,
    notes: list[str],
) -> dict[str, Any]:
    batch, others = str(settings.throughput_batch), [n for n in measured if n != settings.baseline]
    ratios = {name: _against(name, settings, measured, timings) for name in others}
    return {
        "threads": settings.threads,
        "batch": 1,
        "throughput_batch": settings.throughput_batch,
        "throughput_length": throughput_length(settings),
        "baseline": settings.baseline,
        "rounds": settings.rounds,
        "repeats": settings.repeats,
        "models": measured,
        "ratios": ratios,
        "noise": judge_noise(timings.wall_s, timings.cpu_s, settings.threads, ratios),
        "notes": notes,
        "raw": timings.latency,
        "raw_cpu": timings.cpu,
        "raw_throughput_per_s": {name: by[batch] for name, by in timings.throughput.items()},
        "raw_throughput_by_batch": timings.throughput,
    }


def _against(
    name: str, settings: Benchmark, measured: Mapping[str, Any], timings: Timings
) -> dict[str, Any]:
    """Return a model's ratios to the baseline; in speed and throughput, more is faster."""
    base = settings.baseline

    def ratio(over: str, under: str, key: str, wall: Any, cpu: Any) -> dict[str, Any]:
        pairs = ((samples[over][key], samples[under][key]) for samples in (wall, cpu))
        return _ratio(settings, timings, *pairs)

    speedup = {n: ratio(base, name, n, timings.latency, timings.cpu) for n in timings.latency[name]}
    throughput = {
        batch: ratio(name, base, batch, timings.throughput, timings.throughput_cpu)
        for batch in timings.throughput[name]
    }
    own, other = measured[name], measured[base]
    counts = {n: (own["multiply_adds"][n], other["multiply_adds"][n]) for n in speedup}
    return {
        "speedup": speedup,
        "throughput": throughput[str(settings.throughput_batch)],
        "throughput_by_batch": throughput,
        "size_ratio": own["weight_bytes"] / other["weight_bytes"],
        "parameter_ratio": own["parameters"] / other["parameters"],
        "multiply_add_ratio": {
            n: ours / theirs for n, (ours, theirs) in counts.items() if ours and theirs
        },
    }


def _ratio(
    settings: Benchmark, timings: Timings, wall: Sequence[Any], cpu: Sequence[Any]
) -> dict[str, Any]:
    """Return the ratio of two models, one per round, with its interval and verdict.

    Args:
        wall: Samples by round, of the numerator and the denominator.
        cpu: The same of CPU time, which says nothing where there are several threads.
    """

    def by_round(over: Sequence[Any], under: Sequence[Any]) -> dict[str, float]:
        pairs = zip(over, under, strict=True)
        return ratio_with_interval([float(np.median(a) / np.median(b)) for a, b in pairs])

    found = by_round(*wall)
    cpu_time = by_round(*cpu) if settings.threads == 1 else None
    over_cpu = wall_over_cpu(timings.wall_s, timings.cpu_s, settings.threads)
    own = {} if cpu_time is None else {"cpu_time": cpu_time}
    return {**found, **own, "verdict": verdict(found, over_cpu, cpu_time)}


def _pass(settings: Benchmark, timings: Timings, texts: Mapping[str, CutTexts]) -> dict[str, Any]:
    """Return the passes over texts, where there were any."""
    timed = settings.pass_over
    if timed is None:
        return {}
    models, ratios, base = {}, {}, settings.baseline
    for name, cut in texts.items():
        found = ratio_with_interval(timings.passes[name])
        models[name] = {
            "seconds": round(found["median"], 4),
            "interval": [round(found["low"], 4), round(found["high"], 4)],
            "tokens": sum(cut.lengths),
            "cut": cut.cut,
            "tokenize_s": round(cut.seconds, 4),
        }
        if name != base:
            wall, cpu = ((s[base], s[name]) for s in (timings.passes, timings.passes_cpu))
            ratios[name] = _ratio(settings, timings, wall, cpu)
    return {
        "pass": {
            "over": ", ".join(describe(source) for source in timed.sources),
            "columns": timed.columns,
            "texts": len(texts[base].lengths),
            "max_length": timed.max_length,
            "rounds": timed.rounds,
            "models": models,
            "ratios": ratios,
            "raw_s": timings.passes,
        }
    }


# --- checks ---------------------------------------------------------------------------------------


def _chosen(
    models: Sequence[Folder] | Mapping[str, Folder], wanted: Sequence[str] | None
) -> dict[str, Path]:
    """Return models by their names, the first one first; in a list a path is its own name."""
    named = dict(models) if isinstance(models, Mapping) else {os.fspath(m): m for m in models}
    if not named:
        raise ValueError("models: none is given. Name at least one model to measure.")
    for name in wanted or ():
        if name not in named:
            there = ", ".join(named)
            raise ValueError(f"benchmark.models: '{name}' is not a model. Choose from: {there}.")
    names = dict.fromkeys([next(iter(named)), *(wanted or named)])
    return {name: Path(named[name]) for name in names}


def _check_folder(name: str, model: Path) -> None:
    if is_onnx(model):
        require_onnx()
        check_folder(folder_of(model), [path.absolute() for path in graph_files(model)])
        refuse_not_finite(str(model), not_finite_in(read_graph(model).graph, model.parent))
        return
    problem = None
    if not model.exists():
        problem = "the folder was not found. Give a model folder"
    elif not (model / "config.json").is_file():
        problem = "the folder holds no config.json. Give a model folder"
    elif not any(model.glob("*.safetensors")):
        problem = "the folder holds no *.safetensors. Save the model again with save_pretrained"
    if problem is not None:
        raise ValueError(f"{model} (model '{name}'): {problem}.")
    check_folder(model)
    check_stored(model)


def _fitting(
    settings: Benchmark, children: Mapping[str, Child], fit: bool
) -> tuple[Benchmark, list[str]]:
    """Return settings whose lengths all models take, and notes on what was cut."""
    known = {n: c.ready["positions"] for n, c in children.items() if c.ready["positions"]}
    name = min(known, key=lambda one: known[one], default=None)
    positions = None if name is None else known[name]
    changes: dict[str, Any] = {}
    if settings.pass_over is not None:
        cut_at = text_length(settings.pass_over, positions)
        changes["pass_over"] = settings.pass_over.model_copy(update={"max_length": cut_at})
    notes, batched = [], throughput_length(settings)
    longest = max(*settings.lengths, batched)
    if positions is not None and longest > positions:
        if not fit:
            key = "lengths" if longest in settings.lengths else "throughput_length"
            raise ValueError(
                f"benchmark.{key}: {longest} is above the maximum sequence length of the model "
                f"'{name}'. Set at most {positions}."
            )
        lengths = [min(length, positions) for length in settings.lengths]
        changes["lengths"] = list(dict.fromkeys(lengths))
        changes["throughput_length"] = min(batched, positions)
        notes = [
            f"The length {longest} was cut to {positions}, the maximum sequence length of the "
            f"model '{name}'."
        ]
    return settings.model_copy(update=changes), notes
