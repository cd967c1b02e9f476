"""What is heard in the layers is what passes through them, with gradients, and nothing stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
)

from conftest import tiny_config
from potstill.models.captures import Wanted, listening, qkv_widths
from potstill.models.families import FAMILIES
from potstill.models.signals import EMBEDDINGS
from tiny_families import NAMES, family_model

IDS = torch.arange(2, 16).reshape(2, 7)
MASK = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])


def bert() -> PreTrainedModel:
    without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = tiny_config(initializer_range=0.2, **without_dropout)
    return BertModel(config, add_pooling_layer=False)


def distilbert() -> PreTrainedModel:
    config = DistilBertConfig(
        vocab_size=40,
        dim=32,
        hidden_dim=48,
        n_layers=4,
        n_heads=4,
        initializer_range=0.2,
        dropout=0.0,
        attention_dropout=0.0,
    )
    return DistilBertModel(config)


def modernbert() -> PreTrainedModel:
    config = ModernBertConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        pad_token_id=0,
        initializer_range=0.2,
    )
    return ModernBertModel(config)


@pytest.fixture(params=[bert, distilbert, modernbert])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    found: PreTrainedModel = request.param()
    return found.eval()


def projections(model: PreTrainedModel, layer: int, entering_BLD: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values by hand, from what enters a layer."""
    if model.config.model_type == "modernbert":
        block = model.layers[layer]
        weight = block.attn.Wqkv.weight
        normed_BLD = block.attn_norm(entering_BLD)
        return tuple(normed_BLD @ weight[i * 32 : (i + 1) * 32].T for i in range(3))
    if model.config.model_type == "bert":
        block = model.encoder.layer[layer].attention.self
        maps = block.query, block.key, block.value
    else:
        block = model.transformer.layer[layer].attention
        maps = block.q_lin, block.k_lin, block.v_lin
    return tuple(linear(entering_BLD) for linear in maps)


def test_what_is_heard_is_what_passes_through(model: PreTrainedModel) -> None:
    wanted = Wanted(frozenset({EMBEDDINGS, 0, 2}), frozenset({1, 3}))
    with torch.no_grad(), listening(model, FAMILIES[model.config.model_type], wanted) as heard:
        output = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True)
    assert set(heard.layers) == {EMBEDDINGS, 0, 2}
    for layer, values_BLD in heard.layers.items():
        torch.testing.assert_close(values_BLD, output.hidden_states[layer + 1])
    assert set(heard.qkv) == {1, 3}
    for layer, found in heard.qkv.items():
        expected = projections(model, layer, output.hidden_states[layer])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
        assert qkv_widths(model, FAMILIES[model.config.model_type], layer) == (32, 32, 32)


def test_nothing_else_is_listened_to_and_nothing_stays(model: PreTrainedModel) -> None:
    def hooked() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    before = hooked()
    with listening(model, FAMILIES[model.config.model_type], Wanted(qkv=frozenset({3}))):
        assert hooked() - before == (1 if model.config.model_type == "modernbert" else 3)
    assert hooked() == before
    with (
        pytest.raises(ValueError),  # noqa: PT011
        listening(model, FAMILIES[model.config.model_type], Wanted(frozenset({EMBEDDINGS, 1}))),
    ):
        model()
    assert hooked() == before


def test_gradients_are_the_same_where_layers_are_computed_again(model: PreTrainedModel) -> None:
    wanted = Wanted(frozenset({EMBEDDINGS, 1}), frozenset({2}))

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        with listening(model, FAMILIES[model.config.model_type], wanted) as heard:
            model(input_ids=IDS, attention_mask=MASK)
        query, key, value = heard.qkv[2]
        loss = (query * key).sum() + value.square().sum()
        loss = loss + sum(hidden.square().sum() for hidden in heard.layers.values())
        loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    family = FAMILIES[model.config.model_type]
    within = model.get_submodule(f"{family.layers}.1.{family.qkv[0]}")
    computed: list[int] = []
    within.register_forward_pre_hook(lambda *_: computed.append(1))
    model.train()  # without it nothing is computed again
    plain = gradients()
    assert len(computed) == 1
    model.gradient_checkpointing_enable()
    again = gradients()
    assert len(computed) == 3
    assert plain.keys() == again.keys()
    assert len(plain) > 10
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-6)


def test_attention_runs_as_it_always_does(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fast attention is called as often with listening as without."""
    calls: list[Any] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def counted(*arguments: Any, **named: Any) -> Tensor:
        calls.append(1)
        result: Tensor = original(*arguments, **named)
        return result

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    with (
        torch.no_grad(),
        listening(model, FAMILIES[model.config.model_type], Wanted(qkv=frozenset({0, 1, 2, 3}))),
    ):
        model(input_ids=IDS, attention_mask=MASK)
    assert len(calls) == 4


# --- every family ---------------------------------------------------------------------------------


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
    with (
        torch.no_grad(),
        listening(
            model, FAMILIES[model.config.model_type], Wanted(frozenset({EMBEDDINGS, 0, 2}))
        ) as heard,
    ):
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
    with (
        torch.no_grad(),
        listening(model, FAMILIES[model.config.model_type], Wanted(qkv=frozenset({1}))) as heard,
    ):
        model(**padded(model))
    for handle in handles:
        handle.remove()
    # DeBERTa's maps read relative positions, too, after the hidden states
    of_tokens = [value for value in entered if value.shape[:2] == (2, 9)]
    with torch.no_grad():
        outputs = [each(value) for each, value in zip(maps, of_tokens, strict=True)]
    expected = outputs if len(outputs) == 3 else outputs[0].chunk(3, dim=-1)
    assert list(heard.qkv) == [1]
    assert qkv_widths(model, FAMILIES[model.config.model_type], 1) == tuple(
        value.shape[-1] for value in expected
    )
    for found, value in zip(heard.qkv[1], expected, strict=True):
        torch.testing.assert_close(found, value)
