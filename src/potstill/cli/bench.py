"""`potstill bench`: its arguments become settings, its result a file or two."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from potstill.benchmarking.files import check_targets, write_benchmark
from potstill.benchmarking.session import benchmark
from potstill.recipe import Benchmark, Files, Source, TextPass
from potstill.storage import environment

LENGTHS, BATCHES = (16, 128, 512), (1, 8, 32)


def bench(
    models: Sequence[str | os.PathLike[str]],
    *,
    threads: int = 1,
    lengths: Sequence[int] | None = None,
    batches: Sequence[int] | None = None,
    rounds: int = 10,
    repeats: int = 10,
    data: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    max_texts: int | None = None,
    json_file: Path | None = None,
    csv_file: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """`benchmarking.benchmark` of what the command was given; the result has an `environment`, too.

    Args:
        lengths: None: 16, 128 and 512 tokens, cut to what all models have positions for.
        batches: of texts of 128 tokens, or of the longest length if that is less; None: 1, 8, 32.
        data, columns, max_texts: files with texts for a pass over them, their column ("text"; two
            are a pair), and how many texts at most.
        json_file, csv_file: for the result.

    Raises:
        ValueError, BenchmarkFailed: as `benchmark`; also models that are named twice.
    """
    check_targets(json_file, csv_file)
    paths = [os.fspath(model) for model in models]
    twice = next((p for p in paths if sum(_same(p, other) for other in paths) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is named twice: give each model once")
    wanted, sizes = list(lengths or LENGTHS), sorted(set(batches or BATCHES))
    settings = Benchmark(
        threads=threads,
        lengths=wanted,
        rounds=rounds,
        repeats=repeats,
        throughput_batch=sizes[-1],
        batches=sizes[:-1],
        throughput_length=min(128, max(wanted)),
        pass_over=_pass_over(data, columns, max_texts),
    )
    folders = {path: Path(path) for path in paths}
    result = benchmark(folders, settings, progress, fit=lengths is None)
    result = {**result, "environment": environment()}
    write_benchmark(result, json_file, csv_file)
    return result


def _pass_over(
    data: Sequence[str], columns: Sequence[str] | None, max_texts: int | None
) -> TextPass | None:
    if not data:
        if columns or max_texts:
            raise ValueError("--column and --limit are of --data: name its files, too")
        return None
    named = list(columns or ["text"])
    if len(named) > 2:
        raise ValueError(f"--column: {len(named)} columns are named: give one, or two for pairs")
    return TextPass(sources=[*map(_file, data)], columns=named, max_texts=max_texts)


def _file(path: str) -> Source:
    return Files(paths=[path])


def _same(one: str, other: str) -> bool:
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()
