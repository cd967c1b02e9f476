"""Layers that hurt: found by quantizing each alone, and the fewest of them kept in float."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from potstill.graphs.quantization import FloatGraph
from potstill.graphs.sensitivity import divergence, sensitivities, smallest_set
from potstill.recipe import Quantize
from small_graphs import IDS, graph, weights


def test_divergence_is_the_share_of_the_variance() -> None:
    one, two = [np.array([1.0, 3.0]), np.array([5.0])], [np.array([1.0, 4.0]), np.array([3.0])]
    # (0 + 1 + 4) / ((1-3)^2 + 0 + (5-3)^2)
    assert divergence(one, two) == pytest.approx(5 / 8)
    assert divergence(one, one) == 0
    assert divergence([np.ones(2)], [np.full(2, 3.0)]) == 8


def test_the_layer_that_was_made_to_hurt_is_found(tmp_path: Path) -> None:
    """One input channel whose weights are far larger than the others' takes the scale of every
    column: the other channels' weights round to 0."""
    arrays = weights()
    # the channel itself is never active, so float answers don't change with it
    arrays["up"][:, 0] = -100 * np.abs(arrays["up"][:, 0])
    arrays["table"] = np.abs(arrays["table"])
    arrays["down"][0] = 500.0
    source = FloatGraph(graph(tmp_path / "float.onnx", arrays, "none"), Quantize())
    found = sensitivities(source, [{"input_ids": IDS}, {"input_ids": IDS[:1]}])
    assert found[0].layer == "down"
    assert found[0].divergence > 20 * found[1].divergence
    assert {one.layer for one in found} == {"lookup", "up", "down"}


def test_layers_that_stay_in_float_anyway_are_not_looked_at(tmp_path: Path) -> None:
    path = graph(tmp_path / "float.onnx", weights(), "none")
    source = FloatGraph(path, Quantize(float_layers=["up"]))
    assert {one.layer for one in sensitivities(source, [{"input_ids": IDS}])} == {"lookup", "down"}


@pytest.mark.parametrize("needed", [1, 2, 3, 4, 5, 7, 8, 11])
def test_the_smallest_set_is_found_with_few_scores(needed: int) -> None:
    ranked = [f"layer {number}" for number in range(11)]
    asked = []

    def score_with(floats: Sequence[str]) -> float:
        asked.append(len(floats))
        assert list(floats) == ranked[: len(floats)]
        return 0.9 if len(floats) >= needed else 0.5

    found = smallest_set(ranked, score_with, 0.85)
    assert found is not None
    assert found.layers == ranked[:needed]
    assert found.score == 0.9
    assert [number for number, _ in found.tried] == asked
    assert len(asked) <= 2 * np.log2(needed) + 2


def test_a_budget_that_no_set_meets_has_none() -> None:
    assert smallest_set(["a", "b", "c"], lambda floats: 0.5, 0.6) is None
