"""Pruning against the whole model with those parts silent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pruning import PAIRS, encoder_of, evidence, inputs, layers_of, reader_of
from transformers import PreTrainedModel

from potstill.compression.narrowing import narrowed
from potstill.compression.parts import Widths
from potstill.compression.pruning import (
    chosen_width,
    kept_number,
    prune_ffn,
    ranked,
    relative,
    reshaped,
    units_to_keep,
)
from potstill.compression.scores import unit_magnitudes
from potstill.models.families import FAMILIES
from potstill.recipe import Prune
from tiny_families import NAMES, family_model

KEPT, GONE = slice(0, 12), slice(12, 24)  # of 24 channels, which are 2 of 4 heads


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_a_pruned_model_is_the_whole_one_with_those_units_silent(
    name: str, head: str, tmp_path: Path
) -> None:
    model = family_model(name, head, layers=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores = torch.rand(2, 40, generator=torch.Generator().manual_seed(1))
    pruned = prune_ffn(encoder_of(model), scores, 15)
    assert encoder_of(pruned).widths.ffn == 15
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
    same = prune_ffn(encoder_of(model), unit_magnitudes(encoder_of(model)), 40)
    with torch.no_grad():
        assert torch.equal(same(**inputs(model))[0], model(**inputs(model))[0])


def test_units_to_keep() -> None:
    assert units_to_keep(10, 40) == 10
    assert units_to_keep(0.25, 40) == 10
    for ffn, message in (
        (1.5, r"ffn: 1\.5 is out of range\. Set a fraction between 0 and 1\.$"),
        (0, r"ffn: 0 is out of range\. The model's .* size is 40: set a smaller"),
        (41, "ffn: 41 is out of range"),
        (40, "ffn: 40 is the model's .* size already"),
    ):
        with pytest.raises(ValueError, match=message):
            units_to_keep(ffn, 40)


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
    batch = inputs(model)
    sample = [row.tolist() for row in batch["input_ids"]]

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch).last_hidden_state[:, 0].exp().sum()

    chosen = chosen_width(
        encoder_of(model),
        12,
        Prune(width=12, directions=directions, importance=importance),
        sample,
        evidence([batch], loss),
    )
    assert chosen.share == pytest.approx(1.0)
    narrow = narrowed(encoder_of(model), Widths(12, 2, 40), chosen).eval()
    with torch.no_grad():
        expected, found = (m(**batch).last_hidden_state for m in (model, narrow))
    assert expected[..., GONE].abs().max() == 0
    if directions == "channels":
        torch.testing.assert_close(found, expected[..., KEPT], rtol=1e-4, atol=1e-4)
    else:  # the same in other coordinates
        back = found @ chosen.turned_Dd.T
        torch.testing.assert_close(back, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("directions", ["channels", "components"])
def test_a_width_needs_text_whatever_ranks(directions: Any) -> None:
    """The share of the hidden states that is kept scales the norms: of no text it is no number."""
    model = family_model("bert", "headless", layers=1)
    with pytest.raises(
        ValueError, match=r"^width: it needs training text, and there is none\. Add text"
    ):
        chosen_width(
            encoder_of(model),
            12,
            Prune(width=12, directions=directions, importance="magnitude"),
            [],
            evidence([], lambda _: torch.zeros(())),
        )


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
    smaller = reshaped(encoder_of(model), heads, units)
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
    found = reshaped(encoder_of(model), heads)(**inputs(model))[0]
    silenced(model, heads, units)
    torch.testing.assert_close(found, model(**inputs(model))[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_it_has_fewer_parameters_in_every_map_of_heads(name: str) -> None:
    model = family_model(name, "headless", layers=2)
    groups = groups_of(name)
    smaller = reshaped(encoder_of(model), some([groups // 2, groups // 2], groups))
    sizes = {key: value.numel() for key, value in model.named_parameters()}
    half = {key for key, value in smaller.named_parameters() if 2 * value.numel() == sizes[key]}
    family = FAMILIES[name]
    maps = {f"{path}.weight" for path in (*family.qkv, family.attention_out)}
    assert {key for path in maps for key in sizes if key.endswith(path)} == {
        key for key in half if key.endswith(".weight")
    }


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
    with pytest.raises(
        ValueError, match=r"ffn: 0\.95 removes nothing from 2 layers of 4\. Set a smaller"
    ):
        kept_number(0.95, 2, 4, "ffn")
