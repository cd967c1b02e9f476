"""What is heard of a model's layers is what the model itself says of them."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from potstill.captures import Wanted, listening, qkv_widths
from potstill.families import FAMILIES
from potstill.signals import EMBEDDINGS
from tiny_families import NAMES, family_model


def padded(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    ids_BL = torch.randint(5, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, 6:] = 0
    ids_BL[mask_BL == 0] = int(model.config.pad_token_id)
    return {"input_ids": ids_BL, "attention_mask": mask_BL}


@pytest.mark.parametrize("head", ["headless", "masked_lm"])
@pytest.mark.parametrize("name", NAMES)
def test_layers_are_the_model_s_hidden_states(name: str, head: str) -> None:
    model = family_model(name, head, layers=4)
    inputs = padded(model)
    with torch.no_grad(), listening(model, Wanted(frozenset({EMBEDDINGS, 0, 2}))) as heard:
        expected = model.base_model(**inputs, output_hidden_states=True).hidden_states
    assert set(heard.layers) == {EMBEDDINGS, 0, 2}
    real = inputs["attention_mask"].bool()
    for number, state in heard.layers.items():
        torch.testing.assert_close(state[real], expected[number + 1][real])


@pytest.mark.parametrize("name", NAMES)
def test_queries_keys_and_values_are_what_their_projections_give(name: str) -> None:
    model = family_model(name, "headless", layers=2)
    layer = model.get_submodule(FAMILIES[name].layers)[1]
    maps = [layer.get_submodule(path) for path in FAMILIES[name].qkv]
    entered: list[torch.Tensor] = []
    handles = [
        each.register_forward_pre_hook(lambda _, arguments: entered.append(arguments[0]))
        for each in maps
    ]
    with torch.no_grad(), listening(model, Wanted(qkv=frozenset({1}))) as heard:
        model(**padded(model))
    for handle in handles:
        handle.remove()
    # DeBERTa's maps read relative positions, too, after the hidden states
    of_tokens = [value for value in entered if value.shape[:2] == (2, 9)]
    with torch.no_grad():
        outputs = [each(value) for each, value in zip(maps, of_tokens, strict=True)]
    expected = outputs if len(outputs) == 3 else outputs[0].chunk(3, dim=-1)
    assert list(heard.qkv) == [1]
    assert qkv_widths(model, 1) == tuple(value.shape[-1] for value in expected)
    for found, value in zip(heard.qkv[1], expected, strict=True):
        torch.testing.assert_close(found, value)


def test_nothing_is_listened_to_afterwards() -> None:
    model = family_model("bert", "headless", layers=2)
    with torch.no_grad():
        with listening(model, Wanted(frozenset({0}), frozenset({1}))) as heard:
            model(**padded(model))
        first = heard.layers[0]
        model(**padded(model))
    assert heard.layers[0] is first
    assert not any(module._forward_hooks for module in model.modules())
