"""Size and speed of model folders: a process for each model, timed in interleaved rounds.

The parent only orchestrates: it sends one JSON command a line to a child and reads one JSON answer
a line, so nothing computes while a child is being timed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill.benchmarking.multiply_adds import multiply_adds
from potstill.benchmarking.process import Child
from potstill.benchmarking.rounds import CutTexts, Samples, Timings, throughput_length, time_rounds
from potstill.benchmarking.statistics import (
    judge_noise,
    latency_intervals,
    latency_percentiles,
    ratio_with_interval,
    verdict,
    wall_over_cpu,
)
from potstill.benchmarking.texts import Texts, describe_texts, read_texts, text_length, write_tokens
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

    Folders run in PyTorch, in float32; .onnx files in onnxruntime, as they are.

    Rounds are interleaved: in each round every model runs every shape, in an order that rotates, so
    that a machine that slows down meets all models alike and ratios are taken within a round: they
    are to the first model.

    Args:
        models: folders with config.json and *.safetensors, or FOLDER/onnx/NAME.onnx; a mapping
            gives them names.
        settings: lengths in tokens, rounds, repeats, threads; its `models` selects and orders
            names, null takes all of them, and its `baseline` is not read. None: its defaults.
        progress: called with the share that is done, 0 to 1.
        fit: cut lengths that a model has no positions for to what all of them have, which `notes`
            then says, instead of refusing them.

    Returns:
        See docs/benchmark.md for what each number is: `models` (latency in ms at batch 1 and
        throughput in texts/s with 95% bootstrap intervals, multiply-adds of a text, bytes),
        `ratios` against the first with intervals and verdicts, `pass` where texts are given
        (seconds), `noise`, `notes`, and the `raw` samples in ms.

    Raises:
        ValueError: no model, a folder without one, one that does not load, a length beyond a
            model's positions, or text that can't be read.
        BenchmarkFailed: a child process died while it was being timed, or of a lack of memory.
    """
    folders = _folders(models)
    settings = (settings or Benchmark()).model_copy(update={"baseline": next(iter(folders))})
    names = _chosen(folders, settings)
    for name in names:
        _check_folder(name, folders[name])
    texts = read_texts(settings.pass_over) if settings.pass_over else []
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # One after another, so that no model loads while another does.
        children = {
            name: stack.enter_context(Child(name, folders[name], settings.threads))
            for name in names
        }
        settings, notes = _fitting(settings, children, fit)
        cut = _cut(texts, settings, folders, children, scratch)
        timings = time_rounds(children, settings, cut, progress or (lambda share: None))
    measured = {
        name: {
            "parameters": _parameters(folders[name], children[name]),
            "multiply_adds": multiply_adds(folders[name], settings.lengths),
            **_sizes(folders[name]),
            "load_s": round(children[name].ready["load_s"], 4),
            "peak_memory_bytes": timings.peak_memory[name],
            **_speeds(name, settings, timings),
        }
        for name in names
    }
    return _result(settings, measured, timings, notes) | _pass(settings, timings, cut)


# --- results --------------------------------------------------------------------------------------


def _result(
    settings: Benchmark,
    measured: dict[str, dict[str, Any]],
    timings: Timings,
    notes: list[str],
) -> dict[str, Any]:
    ratios = {
        name: _against(name, settings, measured, timings)
        for name in measured
        if name != settings.baseline
    }
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
        "raw_throughput_per_s": {
            name: batches[str(settings.throughput_batch)]
            for name, batches in timings.throughput.items()
        },
        "raw_throughput_by_batch": timings.throughput,
    }


def _speeds(name: str, settings: Benchmark, timings: Timings) -> dict[str, Any]:
    latency, throughput = timings.latency[name], timings.throughput[name]
    by_batch = {batch: float(np.median(rounds)) for batch, rounds in throughput.items()}
    return {
        "latency_ms": {n: latency_percentiles(rounds) for n, rounds in latency.items()},
        "latency_intervals_ms": {n: latency_intervals(rounds) for n, rounds in latency.items()},
        "throughput_per_s": by_batch[str(settings.throughput_batch)],
        "throughput_by_batch": by_batch,
    }


def _against(
    name: str, settings: Benchmark, measured: Mapping[str, Any], timings: Timings
) -> dict[str, Any]:
    """A model's ratios to the baseline; of times and throughput, more is faster."""
    base = settings.baseline

    def faster(samples: Samples, length: str) -> list[float]:
        rounds = zip(samples[base][length], samples[name][length], strict=True)
        return [float(np.median(slow) / np.median(fast)) for slow, fast in rounds]

    def more(rates: Mapping[str, Mapping[str, list[float]]], batch: str) -> list[float]:
        rounds = zip(rates[name][batch], rates[base][batch], strict=True)
        return [ours / theirs for ours, theirs in rounds]

    speedup = {
        length: _ratio(
            faster(timings.latency, length), faster(timings.cpu, length), settings, timings
        )
        for length in timings.latency[name]
    }
    throughput = {
        batch: _ratio(
            more(timings.throughput, batch), more(timings.throughput_cpu, batch), settings, timings
        )
        for batch in timings.throughput[name]
    }
    own, other = measured[name], measured[settings.baseline]
    pairs = {
        length: (own["multiply_adds"][length], other["multiply_adds"][length]) for length in speedup
    }
    return {
        "speedup": speedup,
        "throughput": throughput[str(settings.throughput_batch)],
        "throughput_by_batch": throughput,
        "size_ratio": own["weight_bytes"] / other["weight_bytes"],
        "parameter_ratio": own["parameters"] / other["parameters"],
        "multiply_add_ratio": {
            n: mine / base for n, (mine, base) in pairs.items() if mine and base
        },
    }


def _ratio(
    wall_R: Sequence[float], cpu_R: Sequence[float], settings: Benchmark, timings: Timings
) -> dict[str, Any]:
    """Ratios of a round each, of wall and of CPU time; of several threads the latter is no time."""
    found = ratio_with_interval(wall_R)
    cpu_time = ratio_with_interval(cpu_R) if settings.threads == 1 else None
    over_cpu = wall_over_cpu(timings.wall_s, timings.cpu_s, settings.threads)
    own = {} if cpu_time is None else {"cpu_time": cpu_time}
    return {**found, **own, "verdict": verdict(found, over_cpu, cpu_time)}


def _pass(settings: Benchmark, timings: Timings, texts: Mapping[str, CutTexts]) -> dict[str, Any]:
    """The passes over texts, where there were any."""
    timed = settings.pass_over
    if timed is None:
        return {}
    models, ratios, base = {}, {}, settings.baseline
    for name, rounds in timings.passes.items():
        found, cut = ratio_with_interval(rounds), texts[name].cut
        models[name] = {
            "seconds": round(found["median"], 4),
            "interval": [round(found["low"], 4), round(found["high"], 4)],
            "tokens": sum(cut.lengths),
            "cut": cut.cut,
            "tokenize_s": round(cut.seconds, 4),
        }
        if name != base:
            wall_R, cpu_R = (
                [slow / fast for slow, fast in zip(seconds[base], seconds[name], strict=True)]
                for seconds in (timings.passes, timings.passes_cpu)
            )
            ratios[name] = _ratio(wall_R, cpu_R, settings, timings)
    return {
        "pass": {
            "over": describe_texts(timed),
            "columns": timed.columns,
            "texts": len(texts[settings.baseline].cut.lengths),
            "max_length": timed.max_length,
            "rounds": timed.rounds,
            "models": models,
            "ratios": ratios,
            "raw_s": timings.passes,
        }
    }


# --- checks ---------------------------------------------------------------------------------------


def _folders(models: Sequence[Folder] | Mapping[str, Folder]) -> dict[str, Path]:
    """Models by their names; in a list a path is its own name."""
    named = dict(models) if isinstance(models, Mapping) else {os.fspath(m): m for m in models}
    if not named:
        raise ValueError("benchmark: no model is given: name one at least")
    return {name: Path(folder) for name, folder in named.items()}


def _chosen(models: Mapping[str, Path], settings: Benchmark) -> list[str]:
    names = list(dict.fromkeys([settings.baseline, *(settings.models or models)]))
    for name in names:
        if name not in models:
            there = ", ".join(models)
            raise ValueError(f"benchmark: there is no model '{name}'; there are: {there}")
    return names


def _check_folder(name: str, folder: Path) -> None:
    if is_onnx(folder):
        require_onnx()
        check_folder(folder_of(folder), [path.absolute() for path in graph_files(folder)])
        refuse_not_finite(str(folder), not_finite_in(read_graph(folder).graph, folder.parent))
        return
    if not folder.exists():
        raise ValueError(f"{folder} (model '{name}') is not there: give a model folder")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} (model '{name}') holds no config.json: give a model folder")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} (model '{name}') holds no *.safetensors: save it again with save_pretrained"
        )
    check_folder(folder)
    check_stored(folder)


def _fitting(
    settings: Benchmark, children: Mapping[str, Child], fit: bool
) -> tuple[Benchmark, list[str]]:
    """Settings whose lengths all models have positions for, and what was cut, in sentences."""
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
                f"benchmark.{key}: {longest} tokens are more than the {positions} positions of "
                f"the model '{name}' (max_position_embeddings); ask for {positions} at most"
            )
        lengths = [min(length, positions) for length in settings.lengths]
        changes["lengths"] = list(dict.fromkeys(lengths))
        changes["throughput_length"] = min(batched, positions)
        notes = [f"{longest} tokens are cut to {positions}: the model '{name}' takes no more"]
    return settings.model_copy(update=changes), notes


def _cut(
    texts: Texts,
    settings: Benchmark,
    models: Mapping[str, Path],
    names: Iterable[str],
    scratch: Path,
) -> dict[str, CutTexts]:
    """The texts as each model's own tokenizer cuts them; none where there are no texts."""
    if settings.pass_over is None:
        return {}
    length = text_length(settings.pass_over, None)
    found = {}
    for number, name in enumerate(names):
        folder = folder_of(models[name]) if is_onnx(models[name]) else models[name]
        file = scratch / f"{number}.npz"
        found[name] = CutTexts(write_tokens(texts, folder, length, file), file)
    return found


def _parameters(model: Path, child: Child) -> int:
    return count_parameters(model) if is_onnx(model) else int(child.ready["parameters"])


def _sizes(folder: Path) -> dict[str, int]:
    """Of an .onnx file `folder_bytes` are what has to be shipped with it: no other weights."""
    weights, graph = weight_bytes(folder), is_onnx(folder)
    around = folder_of(folder) if graph else folder
    files = [path for path in around.rglob("*") if path.is_file()]
    if graph:
        files = [p for p in files if p.suffix != ".safetensors" and p.parent.name != ONNX]
    shipped = sum(path.stat().st_size for path in files) + (weights if graph else 0)
    return {"weight_bytes": weights, "folder_bytes": shipped}
