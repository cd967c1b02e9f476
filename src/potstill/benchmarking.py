"""Size and speed of model folders: a process for each model, timed in interleaved rounds.

The parent only orchestrates: it sends one JSON command a line to a child and reads one JSON answer
a line, so nothing computes while a child is being timed. The child is
`python -m potstill.benchmark_worker FOLDER`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from potstill import recipe
from potstill.memory import tells_out_of_memory
from potstill.onnx_files import (
    ONNX,
    count_parameters,
    folder_of,
    is_onnx,
    require_onnx,
    weight_bytes,
)

WARM_UP_PASSES = 3  # untimed passes at every shape before the first round
NOISY_WALL_OVER_CPU = 1.2  # one thread of an idle machine computes nearly all of the wall time
RESAMPLES = 2000


class BenchmarkFailed(RuntimeError):
    """A child process died; the message is one sentence."""


def benchmark(
    models: Mapping[str, Path],
    settings: recipe.Benchmark,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Measure size, latency, throughput and peak memory of models on the CPU.

    Folders run in PyTorch, in float32; .onnx files in onnxruntime, as they are.

    Rounds are interleaved: in each round every model runs every shape, in an order that rotates, so
    that a machine that slows down meets all models alike and ratios are taken within a round.

    Args:
        models: name -> folder with config.json and *.safetensors, or FOLDER/onnx/NAME.onnx.
        settings: lengths in tokens, rounds, repeats, threads; its `models` selects and orders
            names, null takes all of them.
        progress: called with the share that is done, 0 to 1.

    Returns:
        The stage's result: `models` (latency in ms at batch 1, throughput in texts/s at the largest
        length), `ratios` against the baseline with 95% bootstrap intervals, `noise`, and the `raw`
        samples in ms.

    Raises:
        ValueError: no baseline, a folder without a model, one that does not load, or a length
            beyond a model's positions.
        BenchmarkFailed: a child process died while it was being timed, or of a lack of memory.
    """
    names = _chosen(models, settings)
    for name in names:
        _check_folder(name, models[name])
    report = progress or (lambda share: None)
    with contextlib.ExitStack() as stack:
        # One after another, so that no model loads while another does.
        children = {
            name: stack.enter_context(_Child(name, models[name], settings.threads))
            for name in names
        }
        for name, child in children.items():
            _check_lengths(name, child.ready["positions"], settings.lengths)
        timings = _rounds(children, settings, report)
        peaks = {
            name: child.ask({"command": "memory"})["bytes"] for name, child in children.items()
        }
    measured = {
        name: {
            "parameters": _parameters(models[name], children[name]),
            **_sizes(models[name]),
            "load_s": round(children[name].ready["load_s"], 4),
            "peak_memory_bytes": peaks[name],
            "latency_ms": {
                length: latency_percentiles(rounds)
                for length, rounds in timings.latency[name].items()
            },
            "throughput_per_s": float(np.median(timings.throughput[name])),
        }
        for name in names
    }
    ratios = {
        name: _against(name, settings.baseline, measured, timings)
        for name in names
        if name != settings.baseline
    }
    return {
        "threads": settings.threads,
        "batch": 1,
        "throughput_batch": settings.throughput_batch,
        "throughput_length": max(settings.lengths),
        "baseline": settings.baseline,
        "rounds": settings.rounds,
        "repeats": settings.repeats,
        "models": measured,
        "ratios": ratios,
        "noise": judge_noise(timings.wall_s, timings.cpu_s, settings.threads, ratios),
        "raw": timings.latency,
        "raw_throughput_per_s": timings.throughput,
    }


# --- numbers --------------------------------------------------------------------------------------


def latency_percentiles(rounds_ms: Sequence[Sequence[float]]) -> dict[str, float]:
    """p50 and p95 (ms, linear interpolation) over all samples of all rounds."""
    samples = np.concatenate([np.asarray(part, dtype=float) for part in rounds_ms])
    p50, p95 = np.percentile(samples, [50, 95])
    return {"p50": round(float(p50), 4), "p95": round(float(p95), 4)}


def ratio_with_interval(ratios_R: Sequence[float]) -> dict[str, float]:
    """Median of one ratio a round and its 95% interval (percentile bootstrap, seeded)."""
    ratios = np.asarray(ratios_R, dtype=float)
    drawn_SR = np.random.default_rng(0).integers(0, len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn_SR], axis=1), [2.5, 97.5])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def judge_noise(
    wall_s: float, cpu_s: float, threads: int, ratios: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Say whether the machine was too busy for the numbers to be trusted.

    Wall time over CPU time is about 1 at one thread when nothing else runs; at several threads it
    says nothing and is null. An interval of a speedup that holds both 0.95 and 1.05 tells neither
    faster nor slower.
    """
    wall_over_cpu = wall_s / cpu_s if threads == 1 and cpu_s > 0 else None
    reasons = []
    if wall_over_cpu is not None and wall_over_cpu > NOISY_WALL_OVER_CPU:
        reasons.append(
            f"the timed passes took {wall_over_cpu:.2f} times their CPU time, "
            "so other work was using the processor"
        )
    for name, ratio in ratios.items():
        reasons += [
            f"the speedup of {name} at {length} tokens lies anywhere "
            f"between {speed['low']:.2f} and {speed['high']:.2f}"
            for length, speed in ratio["speedup"].items()
            if speed["low"] <= 0.95 and speed["high"] >= 1.05
        ]
    message = f"Noisy machine: {'; '.join(reasons)}. Measure again when it is idle."
    return {
        "wall_over_cpu": None if wall_over_cpu is None else round(wall_over_cpu, 4),
        "noisy": bool(reasons),
        "message": message if reasons else None,
    }


def _against(
    name: str, baseline: str, measured: Mapping[str, Any], timings: _Timings
) -> dict[str, Any]:
    theirs, ours = timings.latency[baseline], timings.latency[name]
    speedup = {
        length: ratio_with_interval(
            [
                float(np.median(slow) / np.median(fast))
                for slow, fast in zip(theirs[length], ours[length], strict=True)
            ]
        )
        for length in ours
    }
    pairs = zip(timings.throughput[name], timings.throughput[baseline], strict=True)
    return {
        "speedup": speedup,
        "throughput": ratio_with_interval([mine / other for mine, other in pairs]),
        "size_ratio": measured[name]["weight_bytes"] / measured[baseline]["weight_bytes"],
        "parameter_ratio": measured[name]["parameters"] / measured[baseline]["parameters"],
    }


# --- checks ---------------------------------------------------------------------------------------


def _chosen(models: Mapping[str, Path], settings: recipe.Benchmark) -> list[str]:
    names = list(dict.fromkeys([settings.baseline, *(settings.models or models)]))
    for name in names:
        if name not in models:
            known = ", ".join(models) or "none"
            raise ValueError(f"benchmark: there is no model '{name}'; there are: {known}")
    return names


def _check_folder(name: str, folder: Path) -> None:
    if is_onnx(folder):
        folder_of(folder)
        require_onnx()
        return
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} (model '{name}') holds no config.json: give a model folder")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} (model '{name}') holds no *.safetensors: save it again with save_pretrained"
        )


def _check_lengths(name: str, positions: int | None, lengths: Sequence[int]) -> None:
    if positions is not None and max(lengths) > positions:
        raise ValueError(
            f"benchmark.lengths: {max(lengths)} tokens are more than the {positions} positions of "
            f"the model '{name}' (max_position_embeddings); ask for {positions} at most"
        )


def _parameters(model: Path, child: _Child) -> int:
    return count_parameters(model) if is_onnx(model) else int(child.ready["parameters"])


def _sizes(folder: Path) -> dict[str, int]:
    """Of an .onnx file `folder_bytes` are what has to be shipped with it: no other weights."""
    if is_onnx(folder):
        weights, around = weight_bytes(folder), folder_of(folder)
        beside = [path for path in around.rglob("*") if path.is_file()]
        others = [p for p in beside if p.suffix != ".safetensors" and p.parent.name != ONNX]
        return {
            "weight_bytes": weights,
            "folder_bytes": weights + sum(path.stat().st_size for path in others),
        }
    return {
        "weight_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "folder_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    }


# --- the parent's side ----------------------------------------------------------------------------


class _Timings:
    """Raw samples: latency[name][length][round][repeat] (ms), throughput[name][round] (texts/s)."""

    def __init__(self, names: Sequence[str], lengths: Sequence[int]) -> None:
        self.latency: dict[str, dict[str, list[list[float]]]] = {
            name: {str(length): [] for length in lengths} for name in names
        }
        self.throughput: dict[str, list[float]] = {name: [] for name in names}
        self.wall_s = 0.0
        self.cpu_s = 0.0


def _rounds(
    children: Mapping[str, _Child], settings: recipe.Benchmark, progress: Callable[[float], None]
) -> _Timings:
    names, lengths = list(children), list(dict.fromkeys(settings.lengths))
    timings = _Timings(names, lengths)
    longest = max(lengths)
    # A shape is (length, batch, timed passes); the last one is the throughput.
    shapes = [(length, 1, settings.repeats) for length in lengths]
    shapes.append((longest, settings.throughput_batch, 1))
    total = (settings.rounds + 1) * len(shapes) * len(names)
    done = itertools.count(1)
    for (length, batch, repeats), name in itertools.product(shapes, names):
        children[name].run(length, batch, min(repeats, WARM_UP_PASSES), seed=0)
        progress(next(done) / total)
    for number in range(settings.rounds):
        for (length, batch, repeats), name in itertools.product(shapes, _order(names, number)):
            answer = children[name].run(length, batch, repeats, seed=number + 1)
            timings.wall_s += sum(answer["wall_s"])
            timings.cpu_s += sum(answer["cpu_s"])
            if (length, batch, repeats) == shapes[-1]:
                timings.throughput[name].append(round(batch / answer["wall_s"][0], 4))
            else:
                milliseconds = [round(1000 * seconds, 4) for seconds in answer["wall_s"]]
                timings.latency[name][str(length)].append(milliseconds)
            progress(next(done) / total)
    return timings


def _order(names: Sequence[str], number: int) -> list[str]:
    """A round's order: rotated by one each round and reversed every other turn of the wheel."""
    start = number % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if number // len(names) % 2 else order


class _Child:
    """A model in its own process; leaving the context ends the process whatever it is doing."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.name, self.folder, self.threads = name, folder, threads
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> _Child:
        # A file, not a pipe: nobody reads it while the child runs, and a full pipe would block it.
        self._stderr: IO[bytes] = tempfile.TemporaryFile()
        command = [sys.executable, "-m", "potstill.benchmark_worker", str(self.folder.resolve())]
        self._process = subprocess.Popen(
            [*command, "--threads", str(self.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            env=_environment(self.threads),
        )
        try:
            self.ready = self._answer()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def run(self, length: int, batch: int, repeats: int, seed: int) -> dict[str, list[float]]:
        """Time `repeats` passes over one batch of random tokens: seconds of wall and CPU time."""
        return self.ask(
            {"command": "run", "length": length, "batch": batch, "repeats": repeats, "seed": seed}
        )

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a dead child has no answer: told below
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _death(self) -> Exception:
        """What to raise for a child that is gone: a model that does not load is bad input."""
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode("utf-8", "replace").strip()
        no_memory, killed = tells_out_of_memory(said), code == -signal.SIGKILL
        if no_memory:
            what = "memory ran out"
        elif said and code >= 0:
            what = said.splitlines()[-1].strip()
        else:
            what = f"its process was ended by {f'signal {-code}' if code < 0 else f'code {code}'}"
        if killed:
            what += ", as happens when memory runs out"
        if no_memory or killed:
            what += ": lower benchmark.throughput_batch or the lengths" if self.ready else ""
        message = f"the model '{self.name}' ({self.folder}) can't be measured: {what}"
        unloadable = not self.ready and code >= 0 and not no_memory
        return ValueError(message) if unloadable else BenchmarkFailed(message)

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


def _environment(threads: int) -> dict[str, str]:
    # Thread pools are sized when libraries load, so this has to be there before the child starts.
    pools = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
    package = str(Path(__file__).resolve().parents[1])
    # Ahead of the standard library, which a folder of other packages must never be.
    first = [] if package == sysconfig.get_path("purelib") else [package]
    return {
        **os.environ,
        **{f"{pool}_NUM_THREADS": str(threads) for pool in pools},
        "VECLIB_MAXIMUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONSAFEPATH": "1",  # with -m, a random.py in the working folder would be imported
        "PYTHONPATH": os.pathsep.join(filter(None, [*first, os.environ.get("PYTHONPATH")])),
    }
