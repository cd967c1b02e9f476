"""Which layers a quantised graph can't do without in float: found by quantising each alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill.graphs.quantization import FloatGraph
from potstill.storage.onnx_files import open_session

# What a user of a graph reads, of all it may give.
_ANSWERS = ("logits", "start_logits", "end_logits", "sentence_embedding")

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Sensitivity:
    """How far a graph's answers move when one layer alone is quantised.

    Attributes:
        divergence: see `divergence`.
    """

    layer: str
    divergence: float


@dataclass(frozen=True)
class Found:
    """The smallest set of layers, by their sensitivity, that brings the score into the budget.

    Attributes:
        layers: the names that stay in float, the most sensitive one first.
        score: that is reached with them in float.
        tried: (number of layers in float, score), in the order they were tried.
    """

    layers: list[str]
    score: float
    tried: list[tuple[int, float]]


def divergence(expected: Sequence[np.ndarray], given: Sequence[np.ndarray]) -> float:
    """Squared difference of two lists of outputs over the variance of the first: 0 is the same.

    sum (given - expected)^2 / sum (expected - mean of expected)^2, over all of them, in float64.
    """
    one = np.concatenate([values.ravel() for values in expected]).astype(np.float64)
    two = np.concatenate([values.ravel() for values in given]).astype(np.float64)
    spread = float(((one - one.mean()) ** 2).sum())
    apart = float(((two - one) ** 2).sum())
    return apart / spread if spread > 0 else apart


def answers(graph: Path, samples: Sequence[Inputs], threads: int) -> list[np.ndarray]:
    """What a graph answers to each sample; hidden states only where it gives nothing else.

    Raises:
        ValueError: onnxruntime can't open the graph.
    """
    session = open_session(graph, threads)
    outputs = [output.name for output in session.get_outputs()]
    names = [name for name in outputs if name in _ANSWERS] or outputs
    found: list[np.ndarray] = []
    for sample in samples:
        found += session.run(names, dict(sample))
    return found


def sensitivities(
    source: FloatGraph,
    samples: Sequence[Inputs],
    threads: int = 1,
    progress: Callable[[float], None] = lambda _: None,
) -> list[Sensitivity]:
    """Quantise each layer alone and compare the answers with the float graph's.

    Args:
        samples: inputs by name: texts, one or a few at a time, without padding.

    Returns:
        The layers that are quantised at all, the most sensitive one first.

    Raises:
        ValueError: as `Source.write` and `open_session`.
    """
    expected = answers(source.path, samples, threads)
    names = [layer.name for layer in source.layers if layer.name not in source.fixed]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "one.onnx"
        for number, name in enumerate(names, start=1):
            source.write(
                graph, [other.name for other in source.layers if other.name != name], samples
            )
            given = answers(graph, samples, threads)
            found.append(Sensitivity(name, divergence(expected, given)))
            progress(number / len(names))
    return sorted(found, key=lambda one: -one.divergence)


def smallest_set(
    ranked: Sequence[str], score_with: Callable[[Sequence[str]], float], least: float
) -> Found | None:
    """The fewest layers, from the first of `ranked` on, with which in float the score is reached.

    Doubles their number until it is enough and then halves the gap, so that a set of k layers costs
    about 2 log2 k scores. It takes for granted that more layers in float don't score worse.

    Args:
        ranked: layers, those that hurt most first.
        score_with: layers in float -> score, the higher the better.

    Returns:
        None if not even all of them in float are enough.
    """
    tried: list[tuple[int, float]] = []

    def enough(count: int) -> bool:
        tried.append((count, score_with(ranked[:count])))
        return tried[-1][1] >= least

    too_few, count = 0, 1
    while not enough(min(count, len(ranked))):
        if count >= len(ranked):
            return None
        too_few, count = count, 2 * count
    count = min(count, len(ranked))
    while count - too_few > 1:
        middle = (too_few + count) // 2
        too_few, count = (too_few, middle) if enough(middle) else (middle, count)
    score: Any = next(value for number, value in reversed(tried) if number == count)
    return Found(list(ranked[:count]), score, tried)
