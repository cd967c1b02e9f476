"""Other numbers of heads and units in each layer, against the whole model with the rest silent."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tiny_pruning import PAIRS, inputs, layers_of, reader_of, summed_loss
from transformers import PreTrainedModel

from potstill.compression.graph_pruning import (
    head_magnitude_scores,
    head_taylor_scores,
    kept_number,
    ranked,
    relative,
    reshaped,
)
from potstill.compression.pruning import cut
from potstill.models.families import FAMILIES
from tiny_families import NAMES, family_model

WIDTH = 6  # of one head of the tiny models: 24 channels, 4 heads


def groups_of(name: str) -> int:
    return 2 if name == "eurobert" else 4  # of four heads two each share keys and values


def out_of(layer: Any, model: PreTrainedModel) -> Any:
    return layer.get_submodule(FAMILIES[model.config.model_type].attention_out)


def some(counts: list[int], of: int) -> list[torch.Tensor]:
    """Of each layer so many numbers below `of`, drawn once and for all."""
    drawn = torch.Generator().manual_seed(1)
    return [torch.randperm(of, generator=drawn)[:count].sort().values for count in counts]


def silenced(model: PreTrainedModel, heads: list[torch.Tensor], units: list[torch.Tensor]) -> None:
    """What is read from a silent head or unit is nothing: its columns times whatever it says."""
    of_a_group = 24 // groups_of(model.config.model_type)
    for layer, kept, inner in zip(layers_of(model), heads, units, strict=True):
        out, reader = out_of(layer, model), reader_of(layer, model)
        stays = torch.isin(torch.arange(24) // of_a_group, kept)
        out.weight[:, ~stays] = 0
        reader.weight[:, ~torch.isin(torch.arange(40), inner)] = 0


@pytest.mark.parametrize(("name", "head"), PAIRS)
@torch.no_grad()
def test_it_is_the_whole_model_with_those_heads_and_units_silent(name: str, head: str) -> None:
    model = family_model(name, head, layers=3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    groups = groups_of(name)
    heads, units = some([1, groups, groups // 2], groups), some([1, 17, 40], 40)
    smaller = reshaped(model, heads, units)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for layer, kept, inner in zip(layers_of(smaller), heads, units, strict=True):
        assert out_of(layer, smaller).weight.shape == (24, len(kept) * 24 // groups)
        assert reader_of(layer, smaller).weight.shape == (24, len(inner))
    found = smaller(**inputs(model))[0]
    silenced(model, heads, units)
    torch.testing.assert_close(found, model(**inputs(model))[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{"share_att_key": False}, {"relative_attention": False}])
@torch.no_grad()
def test_deberta_s_other_settings(changes: dict[str, Any]) -> None:
    model = family_model("deberta-v2", "headless", layers=2, **changes)
    heads, units = some([3, 1], 4), some([40, 40], 40)
    found = reshaped(model, heads)(**inputs(model))[0]
    silenced(model, heads, units)
    torch.testing.assert_close(found, model(**inputs(model))[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_it_has_fewer_parameters_in_every_map_of_heads(name: str) -> None:
    model = family_model(name, "headless", layers=2)
    groups = groups_of(name)
    smaller = reshaped(model, some([groups // 2, groups // 2], groups))
    sizes = {key: value.numel() for key, value in model.named_parameters()}
    half = {key for key, value in smaller.named_parameters() if 2 * value.numel() == sizes[key]}
    family = FAMILIES[name]
    maps = {f"{path}.weight" for path in (*family.qkv, family.attention_out)}
    assert {key for path in maps for key in sizes if key.endswith(path)} == {
        key for key in half if key.endswith(".weight")
    }


@pytest.mark.parametrize("name", NAMES)
def test_taylor_scores_are_those_of_a_gate_on_each_head(name: str) -> None:
    """|d loss / d gate| at 1 of a factor on a head's output, one text at a time."""
    model = family_model(name, "classification", layers=2).double()
    batch, groups = inputs(model), groups_of(name)
    loss = partial(summed_loss, model)
    found = head_taylor_scores(model, [batch, batch], loss)
    gates = [torch.ones(3, 1, groups, 1, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def gated(gate: torch.Tensor) -> Any:
        return lambda _, given: ((given[0].unflatten(-1, (groups, -1)) * gate).flatten(2),)

    for layer, gate in zip(layers_of(model), gates, strict=True):
        out_of(layer, model).register_forward_pre_hook(gated(gate))
    slopes = torch.autograd.grad(loss(batch), gates)
    expected = torch.stack([2 * slope.abs().sum(dim=(0, 1, 3)) for slope in slopes])
    assert expected.max() > 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_magnitude_by_hand() -> None:
    model = family_model("bert", "headless", layers=2)
    attention = layers_of(model)[1].attention
    rows = slice(2 * WIDTH, 3 * WIDTH)
    expected = attention.self.value.weight[rows].norm() * (
        attention.output.dense.weight[:, rows].norm()
    )
    assert float(head_magnitude_scores(model)[1, 2]) == pytest.approx(expected.item(), rel=1e-5)


SCORES = torch.tensor([[3.1, 4.0, 0.0], [0.0, 0.4, 0.3], [0.0, 0.0, 0.0]]).double()


def test_ranked_by_hand() -> None:
    # the best of each layer, then the best of the others
    assert [kept.tolist() for kept in ranked(SCORES, 3)] == [[1], [1], [0]]
    assert [kept.tolist() for kept in ranked(SCORES, 4)] == [[0, 1], [1], [0]]
    assert [kept.tolist() for kept in ranked(SCORES, 5)] == [[0, 1], [1, 2], [0]]


def test_relative_by_hand() -> None:
    found = relative(torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.4, 0.3], [0.0, 0.0, 0.0]]).double())
    expected = [[0.6, 0.8, 0.0], [0.0, 0.8, 0.6], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(found, torch.tensor(expected).double())


def test_kept_number() -> None:
    assert kept_number(0.75, 3, 12, "heads") == 27
    assert kept_number(0.01, 3, 12, "heads") == 3  # one a layer
    with pytest.raises(ValueError, match=r"ffn: a share of 0\.95 leaves all 4 of 2 layers where"):
        kept_number(0.95, 2, 4, "ffn")


def test_taylor_needs_text() -> None:
    with pytest.raises(ValueError, match="no text to take gradients on; use magnitude"):
        head_taylor_scores(
            family_model("bert", "headless", layers=2), [], lambda _: torch.zeros(())
        )


def test_cut_leaves_what_is_kept_alone() -> None:
    linear = torch.nn.Linear(4, 6)
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    kept = torch.tensor([1, 4])
    cut(linear, 0, kept)
    assert torch.equal(linear.weight, weight[kept])
    assert torch.equal(linear.bias, bias[kept])
