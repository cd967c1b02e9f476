"""What the ablations share: who does which (arm, seed), and the table of what came out."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from potstill.storage import environment

RESAMPLES = 2000


def slug(arm: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", arm.lower()).strip("-")


@contextmanager
def claim(work: Path, arm: str, seed: int) -> Iterator[Path | None]:
    """The file that an (arm, seed) is to write; None if it is there, or another is at it."""
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
    """What the last stage of a run wrote; `model/` is the made student's where none distils."""
    return sorted((run / "stages").glob("*/model"))[-1]


def summary(
    work: Path,
    arms: Sequence[str],
    settings: dict[str, Any],
    reference: str = "triple",
    shared: Sequence[str] = (),
) -> dict[str, Any]:
    """Means over seeds, their spread, and paired 95% intervals of the difference to one arm.

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
    return {
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
