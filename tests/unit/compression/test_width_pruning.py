"""Pruning of the hidden width against plain autograd and a model with dead channels."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from potstill.compression.narrowing import Widths, narrowed
from potstill.compression.width_pruning import (
    channel_magnitude_scores,
    chosen_width,
    direction_taylor_scores,
)
from potstill.models.families import layers_of
from tiny_families import NAMES, family_model

KEPT, GONE = slice(0, 12), slice(12, 24)  # of 24 channels, which are 2 of 4 heads


def inputs(pad: int) -> dict[str, torch.Tensor]:
    ids_BL = torch.randint(5, 53, (3, 12), generator=torch.Generator().manual_seed(5))
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, 7:] = 0
    ids_BL[mask_BL == 0] = pad
    return {"input_ids": ids_BL, "attention_mask": mask_BL}


def summed_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits_BC, labels_B = model(**batch).logits, torch.tensor([0, 2, 1])
    return torch.nn.functional.cross_entropy(logits_BC, labels_B, reduction="sum")


@pytest.mark.parametrize("name", NAMES)
def test_directions_are_scored_by_a_gate_in_all_layers(name: str) -> None:
    """d loss / d gate at 1 of h + (gate - 1) (h v) v in all layers, one text at a time."""
    model = family_model(name, "classification", layers=2).double()
    batch = inputs(int(model.config.pad_token_id))
    basis_DD, _ = torch.linalg.qr(
        torch.randn(24, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    )
    loss = partial(summed_loss, model)
    found = direction_taylor_scores(model, basis_DD, [batch, batch], loss)
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


@pytest.mark.parametrize("importance", ["taylor", "magnitude"])
@pytest.mark.parametrize("directions", ["channels", "components"])
def test_channels_that_are_silent_go_and_nothing_changes(directions: Any, importance: Any) -> None:
    """EuroBERT's norms divide by the root mean square, which dead channels leave as it is."""
    model = family_model("eurobert", "headless", layers=2, rms_norm_eps=1e-12)
    with torch.no_grad():
        model.embed_tokens.weight[:, GONE] = 0
        for layer in layers_of(model):
            layer.self_attn.o_proj.weight[GONE] = 0
            layer.mlp.down_proj.weight[GONE] = 0
            layer.self_attn.o_proj.weight[:, GONE] = 0  # the second group of heads
            # a gain for each channel is no gain of any other direction: all alike
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight.fill_(float(norm.weight[0]))
        model.norm.weight.fill_(float(model.norm.weight[0]))
    batch = inputs(int(model.config.pad_token_id))
    sample = [row.tolist() for row in batch["input_ids"]]

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch).last_hidden_state[:, 0].exp().sum()

    chosen = chosen_width(model, 12, directions, importance, sample, lambda: [batch], loss)
    assert chosen.share == pytest.approx(1.0)
    narrow = narrowed(model, Widths(12, 2, 40), choice=chosen).eval()
    with torch.no_grad():
        expected, found = (m(**batch).last_hidden_state for m in (model, narrow))
    assert expected[..., GONE].abs().max() == 0
    if directions == "channels":
        torch.testing.assert_close(found, expected[..., KEPT], rtol=1e-4, atol=1e-4)
    else:  # the same in other coordinates
        back = found @ chosen.turned_Dd.T
        torch.testing.assert_close(back, expected, rtol=1e-3, atol=1e-3)


def test_magnitudes_of_channels_by_hand() -> None:
    model = family_model("eurobert", "headless", layers=1)
    layer = layers_of(model)[0]
    attention, mlp = layer.self_attn, layer.mlp
    written = [attention.o_proj.weight[5], mlp.down_proj.weight[5], model.embed_tokens.weight[:, 5]]
    maps = [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]
    expected = torch.cat(written).norm() * torch.cat([m.weight[:, 5] for m in maps]).norm()
    assert channel_magnitude_scores(model)[5].item() == pytest.approx(expected.item(), rel=1e-5)
    assert channel_magnitude_scores(model).shape == (24,)


def test_taylor_needs_text() -> None:
    model = family_model("bert", "headless", layers=1)
    with pytest.raises(ValueError, match="no text"):
        direction_taylor_scores(model, torch.eye(24).double(), [], lambda _: torch.zeros(()))


@pytest.mark.parametrize("directions", ["channels", "components"])
def test_a_width_needs_text_whatever_ranks(directions: Any) -> None:
    """The share of the hidden states that is kept scales the norms: of no text it is no number."""
    model = family_model("bert", "headless", layers=1)
    with pytest.raises(ValueError, match="width: there is no text to look at hidden states of"):
        chosen_width(model, 12, directions, "magnitude", [], list, lambda _: torch.zeros(()))
