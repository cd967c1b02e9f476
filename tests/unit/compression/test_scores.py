"""Importance of units, heads, layers and directions, against plain float64 autograd."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tiny_pruning import encoder_of, evidence, inputs, layers_of, reader_of, summed_loss

from potstill.compression.scores import (
    channel_magnitudes,
    direction_taylor,
    head_magnitudes,
    head_taylor,
    layer_taylor,
    unit_magnitudes,
    unit_taylor,
)
from potstill.models.families import FAMILIES
from tiny_families import NAMES, family_model

WIDTH = 6  # of one head of the tiny models: 24 channels, 4 heads


def groups_of(name: str) -> int:
    return 2 if name == "eurobert" else 4  # of four heads two each share keys and values


def out_of(layer: Any, model: Any) -> Any:
    return layer.get_submodule(FAMILIES[model.config.model_type].attention_out)


@pytest.mark.parametrize("name", NAMES)
def test_units_are_scored_by_a_gate_on_each(name: str) -> None:
    """d loss / d gate at 1, of a factor on the unit, one text at a time, is the sum over tokens."""
    model = family_model(name, "classification", layers=2).double()
    batch = inputs(model)
    loss = partial(summed_loss, model)
    found = unit_taylor(encoder_of(model), evidence([batch, batch], loss))
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
    found = layer_taylor(encoder_of(model), evidence([batch], loss))
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


@pytest.mark.parametrize("name", NAMES)
def test_heads_are_scored_by_a_gate_on_each(name: str) -> None:
    """|d loss / d gate| at 1 of a factor on a head's output, one text at a time."""
    model = family_model(name, "classification", layers=2).double()
    batch, groups = inputs(model), groups_of(name)
    loss = partial(summed_loss, model)
    found = head_taylor(encoder_of(model), evidence([batch, batch], loss))
    gates = [torch.ones(3, 1, groups, 1, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def gated(gate: torch.Tensor) -> Any:
        return lambda _, given: ((given[0].unflatten(-1, (groups, -1)) * gate).flatten(2),)

    for layer, gate in zip(layers_of(model), gates, strict=True):
        out_of(layer, model).register_forward_pre_hook(gated(gate))
    slopes = torch.autograd.grad(loss(batch), gates)
    expected = torch.stack([2 * slope.abs().sum(dim=(0, 1, 3)) for slope in slopes])
    assert expected.max() > 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_directions_are_scored_by_a_gate_in_all_layers(name: str) -> None:
    """d loss / d gate at 1 of h + (gate - 1) (h v) v in all layers, one text at a time."""
    model = family_model(name, "classification", layers=2).double()
    batch = inputs(model)
    basis_DD, _ = torch.linalg.qr(
        torch.randn(24, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    )
    loss = partial(summed_loss, model)
    found = direction_taylor(encoder_of(model), basis_DD, evidence([batch, batch], loss))
    gate_B1D = torch.ones(3, 1, 24, dtype=torch.float64, requires_grad=True)

    def gated(hidden_BLD: torch.Tensor) -> torch.Tensor:
        return hidden_BLD + ((gate_B1D - 1) * (hidden_BLD @ basis_DD)) @ basis_DD.T

    def enters(_: Any, arguments: Any) -> Any:
        return (gated(arguments[0]), *arguments[1:])

    def leaves(_: Any, __: Any, output: Any) -> Any:
        if torch.is_tensor(output):
            return gated(output)
        return (gated(output[0]), *output[1:])

    layers_of(model)[0].register_forward_pre_hook(enters)
    for layer in layers_of(model):
        layer.register_forward_hook(leaves)
    (slope_B1D,) = torch.autograd.grad(loss(batch), [gate_B1D])
    expected = 2 * slope_B1D.abs().sum(dim=(0, 1))
    assert expected.max() > 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)


def test_magnitudes_of_units_by_hand() -> None:
    model = family_model("eurobert", "headless", layers=2)
    gate, up, down = (layers_of(model)[1].get_submodule(p) for p in FAMILIES["eurobert"].ffn)
    unit = gate.weight[7].norm() * up.weight[7].norm() * down.weight[:, 7].norm()
    assert float(unit_magnitudes(encoder_of(model))[1, 7]) == pytest.approx(unit.item(), rel=1e-5)


def test_magnitudes_of_heads_by_hand() -> None:
    model = family_model("bert", "headless", layers=2)
    attention = layers_of(model)[1].attention
    rows = slice(2 * WIDTH, 3 * WIDTH)
    expected = attention.self.value.weight[rows].norm() * (
        attention.output.dense.weight[:, rows].norm()
    )
    assert float(head_magnitudes(encoder_of(model))[1, 2]) == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_magnitudes_of_channels_by_hand() -> None:
    model = family_model("eurobert", "headless", layers=1)
    layer = layers_of(model)[0]
    attention, mlp = layer.self_attn, layer.mlp
    written = [attention.o_proj.weight[5], mlp.down_proj.weight[5], model.embed_tokens.weight[:, 5]]
    maps = [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]
    expected = torch.cat(written).norm() * torch.cat([m.weight[:, 5] for m in maps]).norm()
    assert channel_magnitudes(encoder_of(model))[5].item() == pytest.approx(
        expected.item(), rel=1e-5
    )
    assert channel_magnitudes(encoder_of(model)).shape == (24,)


@pytest.mark.parametrize(
    "taylor",
    [
        unit_taylor,
        head_taylor,
        layer_taylor,
        lambda encoder, none: direction_taylor(encoder, torch.eye(24).double(), none),
    ],
    ids=["units", "heads", "layers", "directions"],
)
def test_taylor_needs_text(taylor: Callable[..., torch.Tensor]) -> None:
    model = family_model("bert", "headless", layers=2)
    message = r"importance: taylor needs training text, .*, or set importance to magnitude\.$"
    with pytest.raises(ValueError, match=message):
        taylor(encoder_of(model), evidence([], lambda _: torch.zeros(())))
