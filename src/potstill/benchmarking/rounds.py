"""Run the rounds of a benchmark: which model runs which shape when, and keep raw samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from potstill.benchmarking.process import Child
from potstill.recipe import Benchmark

if TYPE_CHECKING:
    from potstill.benchmarking.texts import CutTexts

WARM_UP_PASSES = 3  # untimed passes at every shape before the first round


class Workload(NamedTuple):
    """Hold what a model runs in a round: timed passes over a batch of texts of a length."""

    length: int
    batch: int
    repeats: int

    @property
    def work(self) -> int:
        """Return the tokens of all passes, the untimed pass included."""
        return self.length * self.batch * (self.repeats + 1)


class Timings:
    """Hold the raw samples of models, by name.

    Attributes:
        latency, cpu: [name][length][round][repeat], in ms of wall and of CPU time.
        throughput, throughput_cpu: [name][batch][round], in texts per second of wall and of CPU
            time.
        passes, passes_cpu: [name][round], seconds of wall and of CPU time of a pass over texts.
        peak_memory: Bytes, before any pass over texts.
        wall_s, cpu_s: Sums over everything that was timed.
    """

    def __init__(self, names: Sequence[str], settings: Benchmark) -> None:
        def empty(keys: Sequence[int]) -> dict[str, dict[str, list[Any]]]:
            return {name: {str(key): [] for key in keys} for name in names}

        self.latency, self.cpu = empty(settings.lengths), empty(settings.lengths)
        batches = batch_sizes(settings)
        self.throughput, self.throughput_cpu = empty(batches), empty(batches)
        self.passes, self.passes_cpu = ({n: list[float]() for n in names} for _ in range(2))
        self.peak_memory: dict[str, int | None] = {}
        self.wall_s = 0.0
        self.cpu_s = 0.0

    def add(self, answer: Mapping[str, Sequence[float]]) -> Sequence[float]:
        """Add a child's answer to the sums; return the wall time of each timed pass, in seconds."""
        self.wall_s += sum(answer["wall_s"])
        self.cpu_s += sum(answer["cpu_s"])
        return answer["wall_s"]


def batch_sizes(settings: Benchmark) -> list[int]:
    """Return the sizes of batches whose throughput is measured, from the smallest."""
    return sorted({*settings.batches, settings.throughput_batch})


def throughput_length(settings: Benchmark) -> int:
    """Return the tokens of the texts in those batches."""
    return settings.throughput_length or max(settings.lengths)


def time_rounds(
    children: Mapping[str, Child],
    settings: Benchmark,
    texts: Mapping[str, CutTexts],
    progress: Callable[[float], None],
) -> Timings:
    """Run warm-up and all rounds, read peak memory, then run the passes over texts, if any."""
    names, done = list(children), 0
    timings = Timings(names, settings)
    latency = [Workload(length, 1, settings.repeats) for length in dict.fromkeys(settings.lengths)]
    batched = throughput_length(settings)
    throughput = [Workload(batched, batch, 1) for batch in batch_sizes(settings)]
    passes = settings.pass_over.rounds if settings.pass_over is not None else 0
    work = len(names) * (settings.rounds + 1) * sum(shape.work for shape in latency + throughput)
    total = work + passes * sum(sum(cut.lengths) for cut in texts.values())

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(done / total)

    for shape, name in itertools.product(latency + throughput, names):
        children[name].run(*shape._replace(repeats=min(shape.repeats, WARM_UP_PASSES)), seed=0)
        advance(shape.work)
    for number in range(settings.rounds):
        for shape, name in itertools.product(latency, order(names, number)):
            answer = children[name].run(*shape, seed=number + 1)
            length = str(shape.length)
            timings.latency[name][length].append(_milliseconds(timings.add(answer)))
            timings.cpu[name][length].append(_milliseconds(answer["cpu_s"]))
            advance(shape.work)
        for shape, name in itertools.product(throughput, order(names, number)):
            answer = children[name].run(*shape, seed=number + 1)
            batch = str(shape.batch)
            (wall_s,), (cpu_s,) = timings.add(answer), answer["cpu_s"]
            timings.throughput[name][batch].append(round(shape.batch / wall_s, 4))
            timings.throughput_cpu[name][batch].append(round(shape.batch / cpu_s, 4))
            advance(shape.work)
    timings.peak_memory = {name: child.ask("memory")["bytes"] for name, child in children.items()}
    for name, cut in texts.items():
        children[name].ask("texts", file=str(cut.file))
    for name in (name for number in range(passes) for name in order(list(texts), number)):
        answer = children[name].ask("pass")
        timings.passes[name].append(round(sum(timings.add(answer)), 4))
        timings.passes_cpu[name].append(round(sum(answer["cpu_s"]), 4))
        advance(sum(texts[name].lengths))
    return timings


def order(names: Sequence[str], number: int) -> list[str]:
    """Rotate the names by one each round, and reverse them every other turn of the wheel."""
    start = number % len(names)
    turned = [*names[start:], *names[:start]]
    return turned[::-1] if number // len(names) % 2 else turned


def _milliseconds(seconds: Sequence[float]) -> list[float]:
    return [round(1000 * one, 4) for one in seconds]
