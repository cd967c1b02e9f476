"""Pruning against the whole model with those units silent, and against plain float64 autograd."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pruning import PAIRS, inputs, layers_of, reader_of, summed_loss

from potstill.compression.narrowing import widths_of
from potstill.compression.pruning import (
    layer_taylor_scores,
    magnitude_scores,
    prune_ffn,
    taylor_scores,
    units_to_keep,
)
from potstill.models.families import FAMILIES
from tiny_families import NAMES, family_model


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_a_pruned_model_is_the_whole_one_with_those_units_silent(
    name: str, head: str, tmp_path: Path
) -> None:
    model = family_model(name, head, layers=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores = torch.rand(2, 40, generator=torch.Generator().manual_seed(1))
    pruned = prune_ffn(model, scores, 15)
    assert widths_of(pruned.config).ffn == 15
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    pruned.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        for layer, score_F in zip(layers_of(model), scores, strict=True):
            silent = score_F.argsort()[:25]
            # what is read from a silent unit is nothing: its column times whatever it says
            reader_of(layer, model).weight[:, silent] = 0
        expected, found = model(**inputs(model))[0], loaded(**inputs(model))[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_pruned_is_the_same_model(name: str) -> None:
    model = family_model(name, "masked_lm", layers=2)
    same = prune_ffn(model, magnitude_scores(model), 40)
    with torch.no_grad():
        assert torch.equal(same(**inputs(model))[0], model(**inputs(model))[0])


@pytest.mark.parametrize("name", NAMES)
def test_taylor_scores_are_those_of_a_gate_on_each_unit(name: str) -> None:
    """d loss / d gate at 1, of a factor on the unit, one text at a time, is the sum over tokens."""
    model = family_model(name, "classification", layers=2).double()
    batch = inputs(model)
    loss = partial(summed_loss, model)
    found = taylor_scores(model, [batch, batch], loss)
    gates = [torch.ones(3, 1, 40, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def gated(gate_B1F: torch.Tensor) -> Any:
        return lambda _, arguments: (arguments[0] * gate_B1F,)

    for layer, gate in zip(layers_of(model), gates, strict=True):
        reader_of(layer, model).register_forward_pre_hook(gated(gate))
    slopes = torch.autograd.grad(loss(batch), gates)
    expected = torch.stack([2 * slope.abs().sum(dim=(0, 1)) for slope in slopes])
    assert expected.min() >= 0
    assert expected.max() > 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_layer_scores_are_those_of_a_gate_on_what_a_layer_adds(name: str) -> None:
    """d loss / d gate at 1 of input + gate * (output - input), one text at a time."""
    model = family_model(name, "classification", layers=3).double()
    batch = inputs(model)
    loss = partial(summed_loss, model)
    found = layer_taylor_scores(model, [batch], loss)
    gates = [torch.ones(3, 1, 1, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def gated(gate_B11: torch.Tensor) -> Any:
        def hook(_: Any, arguments: Any, output: Any) -> Any:
            first = output if torch.is_tensor(output) else output[0]
            mixed = arguments[0] + gate_B11 * (first - arguments[0])
            return mixed if torch.is_tensor(output) else (mixed, *output[1:])

        return hook

    for layer, gate in zip(layers_of(model), gates, strict=True):
        layer.register_forward_hook(gated(gate))
    slopes = torch.autograd.grad(loss(batch), gates)
    expected = torch.stack([slope.abs().sum() for slope in slopes])
    assert expected.min() > 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_magnitude_by_hand() -> None:
    model = family_model("eurobert", "headless", layers=2)
    gate, up, down = (layers_of(model)[1].get_submodule(p) for p in FAMILIES["eurobert"].ffn)
    unit = gate.weight[7].norm() * up.weight[7].norm() * down.weight[:, 7].norm()
    assert float(magnitude_scores(model)[1, 7]) == pytest.approx(unit.item(), rel=1e-5)


def test_units_to_keep() -> None:
    assert units_to_keep(10, 40) == 10
    assert units_to_keep(0.25, 40) == 10
    for ffn, message in (
        (1.5, "a share of 1.5 is out of range"),
        (0, "ffn: 0 is out of range: the model's is 40"),
        (41, "ffn: 41 is out of range"),
        (40, "nothing to prune"),
    ):
        with pytest.raises(ValueError, match=message):
            units_to_keep(ffn, 40)


def test_taylor_needs_text() -> None:
    with pytest.raises(ValueError, match="no text"):
        taylor_scores(family_model("bert", "headless", layers=2), [], lambda _: torch.zeros(()))
