"""Rounds: who runs what when, and what becomes of the answers; without processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from potstill.benchmarking.rounds import order, time_rounds
from potstill.benchmarking.texts import CutTexts
from potstill.recipe import Benchmark, TextPass


class Fake:
    """A child that takes `seconds` a token, in all of its passes, and half of it on the CPU."""

    def __init__(self, name: str, seconds: float, log: list[tuple[Any, ...]]) -> None:
        self.name, self.seconds, self.log = name, seconds, log

    def run(self, length: int, batch: int, repeats: int, seed: int) -> dict[str, list[float]]:
        self.log.append((self.name, length, batch, repeats, seed))
        return self._took([length * batch] * repeats)

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        self.log.append((self.name, command, *arguments.values()))
        return {"bytes": 1000, "texts": 2, **self._took([4, 6])}

    def _took(self, tokens: list[int]) -> dict[str, list[float]]:
        return {
            "wall_s": [self.seconds * count for count in tokens],
            "cpu_s": [self.seconds * count / 2 for count in tokens],
        }


def test_all_that_is_run_and_what_is_kept() -> None:
    log: list[tuple[Any, ...]] = []
    children: Any = {"a": Fake("a", 0.5, log), "b": Fake("b", 0.25, log)}
    cut = {name: CutTexts([4, 6], 0, 0.0, Path(f"{name}.npz")) for name in children}
    timed = TextPass(sources=["t.txt"], rounds=3)
    settings = Benchmark(
        **{"lengths": [8], "rounds": 3, "repeats": 5, "throughput_batch": 4, "batches": [2]},
        **{"throughput_length": 16, "pass_over": timed},
    )
    shares: list[float] = []
    timings = time_rounds(children, settings, cut, shares.append)

    warm = [(name, *shape, 0) for shape in ((8, 1, 3), (16, 2, 1), (16, 4, 1)) for name in "ab"]
    rounds = [
        (name, *shape, number + 1)
        for number, names in enumerate(("ab", "ba", "ba"))
        for shape in ((8, 1, 5), (16, 2, 1), (16, 4, 1))
        for name in names
    ]
    rest = [("a", "memory"), ("b", "memory"), ("a", "texts", "a.npz"), ("b", "texts", "b.npz")]
    passes = [(name, "pass") for names in ("ab", "ba", "ba") for name in names]
    assert log == [*warm, *rounds, *rest, *passes]
    assert timings.latency["a"] == {"8": [[4000.0] * 5] * 3}  # ms: 8 tokens of 0.5 s
    assert timings.latency["b"] == {"8": [[2000.0] * 5] * 3}
    assert timings.cpu["b"] == {"8": [[1000.0] * 5] * 3}
    assert timings.throughput["a"] == {"2": [0.125] * 3, "4": [0.125] * 3}  # 1 text in 8 s
    assert timings.throughput_cpu["a"] == {"2": [0.25] * 3, "4": [0.25] * 3}
    assert timings.passes_cpu == {"a": [2.5] * 3, "b": [1.25] * 3}
    assert timings.passes == {"a": [5.0] * 3, "b": [2.5] * 3}  # 10 tokens
    assert timings.peak_memory == {"a": 1000, "b": 1000}
    assert timings.wall_s == pytest.approx(3 * 0.75 * (8 * 5 + 16 * 2 + 16 * 4 + 10))
    assert timings.cpu_s == pytest.approx(timings.wall_s / 2)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_without_texts_there_is_no_pass() -> None:
    log: list[tuple[Any, ...]] = []
    children: Any = {"a": Fake("a", 0.5, log)}
    timings = time_rounds(children, Benchmark(lengths=[8], rounds=3), {}, lambda share: None)
    assert timings.passes == {"a": []}
    assert not [entry for entry in log if "pass" in entry]


def test_every_model_takes_every_place_in_turn():
    names = ["a", "b", "c"]
    turns = ["".join(order(names, number)) for number in range(6)]
    assert turns == ["abc", "bca", "cab", "cba", "acb", "bac"]
    assert ["".join(order(["a", "b"], n)) for n in range(4)] == [
        "ab",
        "ba",
        "ba",
        "ab",
    ]
