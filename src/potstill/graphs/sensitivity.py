"""The layers that a quantized graph needs in float: found by quantizing each alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from potstill.graphs.quantization import FloatGraph
from potstill.storage.onnx_files import open_session

# What a user of a graph reads, of all it may give.
_ANSWERS = ("logits", "start_logits", "end_logits", "sentence_embedding")

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Sensitivity:
    """Hold how far a graph's outputs move when one layer alone is quantized; see `divergence`."""

    layer: str
    divergence: float


@dataclass(frozen=True)
class Found:
    """Hold the smallest set of layers, by their sensitivity, that meets the budget."""

    layers: list[str]  # names of those that stay in float, the most sensitive one first
    score: float  # with them in float
    tried: list[tuple[int, float]]  # (number of layers in float, score), in order


def divergence(expected: Sequence[np.ndarray], given: Sequence[np.ndarray]) -> float:
    """Compute the squared difference of two lists of outputs over the variance of the first.

    sum (given - expected)^2 / sum (expected - mean of expected)^2, over all of them, in float64; 0
    for equal ones.
    """
    one = np.concatenate([values.ravel() for values in expected]).astype(np.float64)
    two = np.concatenate([values.ravel() for values in given]).astype(np.float64)
    spread = float(((one - one.mean()) ** 2).sum())
    apart = float(((two - one) ** 2).sum())
    return apart / spread if spread > 0 else apart


def outputs_of(graph: Path, samples: Sequence[Inputs], threads: int) -> list[np.ndarray]:
    """Run a graph on each sample; hidden states count only where it gives nothing else.

    Raises:
        ValueError: onnxruntime can't open the graph.
    """
    session = open_session(graph, threads)
    outputs = [output.name for output in session.get_outputs()]
    names = [name for name in outputs if name in _ANSWERS] or outputs
    return [values for sample in samples for values in session.run(names, dict(sample))]


def sensitivities(
    source: FloatGraph,
    samples: Sequence[Inputs],
    threads: int = 1,
    progress: Callable[[float], None] = lambda _: None,
) -> list[Sensitivity]:
    """Quantize each layer alone and compare the outputs with the float graph's.

    Args:
        samples: Inputs by name: texts, one or a few at a time, without padding.

    Returns:
        The layers that are quantized at all, the most sensitive one first.

    Raises:
        ValueError: as `FloatGraph.write` and `open_session`.
    """
    expected = outputs_of(source.path, samples, threads)
    every = [layer.name for layer in source.layers]
    names, found = [name for name in every if name not in source.fixed], []
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "one.onnx"
        for number, name in enumerate(names, start=1):
            source.write(graph, [other for other in every if other != name], samples)
            apart = divergence(expected, outputs_of(graph, samples, threads))
            found.append(Sensitivity(name, apart))
            progress(number / len(names))
    return sorted(found, key=lambda one: -one.divergence)


def smallest_set(
    ranked: Sequence[str], score_with: Callable[[Sequence[str]], float], least: float
) -> Found | None:
    """Find the fewest layers, from the first of `ranked` on, that reach a score in float.

    Doubles their number until it is enough and then halves the gap, so that a set of k layers costs
    about 2 log2 k scores. It takes for granted that more layers in float don't score worse. None if
    not even all of them in float are enough.
    """
    tried: list[tuple[int, float]] = []

    def enough(count: int) -> bool:
        tried.append((count, score_with(ranked[:count])))
        return tried[-1][1] >= least

    too_few, count = 0, min(1, len(ranked))
    while not enough(count):
        if count >= len(ranked):
            return None
        too_few, count = count, min(2 * count, len(ranked))
    while count - too_few > 1:
        middle = (too_few + count) // 2
        too_few, count = (too_few, middle) if enough(middle) else (middle, count)
    return Found(list(ranked[:count]), dict(tried)[count], tried)
