"""The part that the ablations share: arguments, who does which (arm, seed), and the summary."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from potstill.benchmarking.statistics import RESAMPLES
from potstill.storage import environment

Objectives = list[dict[str, Any]]
Arms = dict[str, tuple[dict[str, Any], Objectives]]  # name -> (keys of make_student, objectives)


def common_arms(soft: Any, hard: Any, cosine: Any) -> Arms:
    """Return the arms of every ablation: one objective less, another start, another layer map."""
    triple = [soft, hard, cosine]
    return {
        "triple": ({}, triple),
        "without soft": ({}, [hard, cosine]),
        "without hard": ({}, [soft, cosine]),
        "without cosine": ({}, [soft, hard]),
        "random start": ({"initialize": "random"}, triple),
        **{
            f"layers {which}": ({"layers": which}, triple) for which in ("first", "last", "uniform")
        },
    }


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every ablation."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--summary", action="store_true")
    return parser


def begin(options: argparse.Namespace) -> None:
    """Set threads and the cache before anything runs."""
    torch.set_num_threads(options.threads)
    os.environ["POTSTILL_CACHE"] = str(options.work / "cache")


def score_all(
    options: argparse.Namespace,
    arms: Sequence[str],
    score: Callable[[str, int, Path], dict[str, list[float]]],
) -> None:
    """Score the teacher and each arm with each seed, but for those that are done or being done.

    Args:
        score: Takes the arm's name, the seed and a folder to run in, which is removed afterwards.
    """
    for seed in options.seeds:
        for name in ("teacher", *arms):
            with claim(options.work, name, seed) as path:
                if path is not None:
                    folder = options.work / "runs" / f"{slug(name)}-{seed}"
                    path.write_text(json.dumps(score(name, seed, folder)))
                    shutil.rmtree(folder, ignore_errors=True)


def slug(arm: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", arm.lower()).strip("-")


@contextmanager
def claim(work: Path, arm: str, seed: int) -> Iterator[Path | None]:
    """Yield the file that an (arm, seed) writes; None if it is there, or being written."""
    folder = work / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug(arm)}-{seed}.json"
    lock = path.with_suffix(".lock")
    if path.exists():
        yield None
        return
    try:
        descriptor = os.open(lock, os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        yield None
        return
    try:
        os.close(descriptor)
        print(f"{arm}, seed {seed}", flush=True)
        yield path
    finally:
        lock.unlink()


def last_model(run: Path) -> Path:
    """Return the last stage's model; a run's `model/` is the made student where none distills."""
    return sorted((run / "stages").glob("*/model"))[-1]


def print_summary(
    work: Path,
    arms: Sequence[str],
    settings: dict[str, Any],
    reference: str = "triple",
    shared: Sequence[str] = (),
) -> None:
    """Print means over seeds, their spread, and paired 95% intervals of the difference to one arm.

    A resample draws items, the same for both arms (percentile bootstrap), and the same for all
    seeds of a score in `shared`, whose items are the same whatever the seed; of other scores each
    seed has items of its own. What other seeds would do to an arm is told by the spread, not by the
    interval.
    """
    found: dict[str, dict[int, dict[str, list[float]]]] = {}
    for arm in ("teacher", *arms):
        for path in sorted((work / "scores").glob(f"{slug(arm)}-[0-9]*.json")):
            if re.fullmatch(rf"{slug(arm)}-\d+", path.stem):
                found.setdefault(arm, {})[int(path.stem.rpartition("-")[2])] = json.loads(
                    path.read_text()
                )
    base = found[reference]
    result = {
        "settings": settings,
        "environment": environment(),
        "reference": reference,
        "arms": {
            arm: {
                score: _row(
                    {seed: values[score] for seed, values in by_seed.items()},
                    {seed: values[score] for seed, values in base.items()},
                    {seed: values[score] for seed, values in found["teacher"].items()},
                    score in shared,
                )
                for score in next(iter(by_seed.values()))
            }
            for arm, by_seed in found.items()
        },
    }
    print(json.dumps(result, indent=1))


Items = dict[int, list[float]]  # seed -> one value an item


def _row(items: Items, base: Items, teacher: Items, shared: bool) -> dict[str, Any]:
    means = {seed: float(np.mean(values)) for seed, values in sorted(items.items())}
    both = sorted(items.keys() & base.keys())
    differences = [np.array(items[s]) - np.array(base[s]) for s in both]
    by_seed = [float(d.mean()) for d in differences]
    if shared:
        differences = [np.mean(differences, axis=0)]
    rng = np.random.default_rng(1)
    draws = np.mean(
        [d[rng.integers(0, len(d), (RESAMPLES, len(d)))].mean(axis=1) for d in differences], axis=0
    )
    taught = [float(np.mean(teacher[s])) for s in means if s in teacher]
    mean = float(np.mean(list(means.values())))
    return {
        "mean": mean,
        "seeds": means,
        "kept": mean / float(np.mean(taught)),
        "difference": float(np.mean([d.mean() for d in differences])),
        "by_seed": by_seed,
        "interval": [float(v) for v in np.percentile(draws, [2.5, 97.5])],
    }
