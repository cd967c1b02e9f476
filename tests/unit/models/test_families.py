"""The table of architectures, against what transformers itself computes."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from transformers import (
    AlbertConfig,
    BertConfig,
    DistilBertConfig,
    FNetConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    T5Config,
)

from potstill.models.families import FAMILIES, family_of, lm_readout
from tiny_families import NAMES, family_model


def padded(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    ids_BL = torch.randint(5, 40, (3, 11), generator=torch.Generator().manual_seed(1))
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, 7:] = 0
    ids_BL[mask_BL == 0] = int(model.config.pad_token_id)
    return ids_BL, mask_BL


def test_every_row_has_a_tiny_model() -> None:
    assert set(NAMES) == set(FAMILIES)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}], ids=["tied", "untied"])
@pytest.mark.parametrize("name", [*FAMILIES, "deberta-v2 without a decoder"])
def test_features_and_readout_are_the_models_own_logits(
    name: str, changes: dict[str, object]
) -> None:
    if " " in name:
        name, changes = "deberta-v2", {**changes, "legacy": False}
    model = family_model(name, "masked_lm", **changes)
    ids_BL, mask_BL = padded(model)
    with torch.no_grad():
        expected_BLV = model(input_ids=ids_BL, attention_mask=mask_BL).logits
        hidden_BLD = model.base_model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        features_KD = FAMILIES[name].lm_features(model, hidden_BLD[mask_BL.bool()])
        readout = lm_readout(model)
        logits_KV = readout.logits(features_KD, slice(0, len(features_KD)))
    torch.testing.assert_close(logits_KV, expected_BLV[mask_BL.bool()], rtol=1e-4, atol=1e-4)
    assert logits_KV.std() > 0.5  # the head does say something


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_is_what_the_base_model_lacks(name: str, tied: bool) -> None:
    model = family_model(name, "masked_lm", tie_word_embeddings=tied)
    base = {id(parameter) for parameter in model.base_model.parameters()}
    head = FAMILIES[name].lm_head_parameters(model)
    # also where the tied table is listed as the decoder's
    assert head == {n for n, parameter in model.named_parameters() if id(parameter) not in base}
    for key in model.state_dict():
        of_head = key.startswith(FAMILIES[name].lm_head)
        assert of_head is not key.startswith(f"{model.base_model_prefix}.")


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_found_with_and_without_a_head(name: str) -> None:
    model = family_model(name, "masked_lm", layers=4)
    for each in (model, model.base_model):
        prefix = FAMILIES[name].layer_prefix(each)
        found = [key for key in each.state_dict() if key.startswith(prefix)]
        assert {key.removeprefix(prefix).split(".")[0] for key in found} == {"0", "1", "2", "3"}


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_of_a_layer_are_linear_maps_of_the_right_widths(name: str) -> None:
    model = family_model(name, "headless")
    row, config = FAMILIES[name], model.config
    layer = model.get_submodule(row.layers)[1]
    *writers, reader = (layer.get_submodule(path) for path in row.ffn)
    assert reader.in_features == 40
    assert {w.out_features for w in writers} in ({40}, {80})  # two in one, where one gates
    qkv = [layer.get_submodule(path) for path in row.qkv]
    assert len(qkv) in (1, 3)
    assert {w.in_features for w in [*writers, *qkv]} == {config.hidden_size}
    heads = layer.get_submodule(row.attention_out)
    assert (heads.in_features, heads.out_features) == (config.hidden_size, config.hidden_size)
    query = qkv[0].out_features // (3 if len(qkv) == 1 else 1)
    assert query == config.hidden_size


@pytest.mark.parametrize("name", FAMILIES)
def test_token_types_and_poolers_are_where_the_table_says(name: str) -> None:
    model = family_model(name, "headless")
    takes = "token_type_ids" in FAMILIES[name].inputs(model.config)
    assert ("add_pooling_layer" in inspect.signature(type(model).__init__).parameters) is FAMILIES[
        name
    ].has_pooler
    ids_BL, mask_BL = padded(model)
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        assert not takes
        return
    second = torch.ones_like(ids_BL) * int(takes)
    with torch.no_grad():
        plain = model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        typed = model(input_ids=ids_BL, attention_mask=mask_BL, token_type_ids=second)
    differs = not torch.allclose(plain, typed.last_hidden_state)
    assert differs is takes


@pytest.mark.parametrize("name", FAMILIES)
def test_the_longest_text_is_as_long_as_the_table_says(name: str) -> None:
    model = family_model(name, "headless")
    limit = FAMILIES[name].position_limit(model.config)
    assert limit == 64
    ids_BL = torch.randint(5, 40, (1, limit + 1), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert model(input_ids=ids_BL[:, :limit]).last_hidden_state.isfinite().all()
        if hasattr(model, "embeddings") and getattr(
            model.embeddings, "position_embeddings", None
        ):  # a table, and so an end
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=ids_BL)


def test_scores_are_plain_where_the_table_says() -> None:
    """Queries times keys over the root of the head's width, softmaxed: the model's attention."""
    for name in (name for name, row in FAMILIES.items() if row.plain_scores):
        model = family_model(name, "headless", attn_implementation="eager")
        row, (ids_BL, mask_BL) = FAMILIES[name], padded(model)
        layer, caught = model.get_submodule(row.layers)[0], {}
        for path in row.qkv[:2]:
            layer.get_submodule(path).register_forward_hook(
                lambda _, __, out, path=path, caught=caught: caught.__setitem__(path, out)
            )
        with torch.no_grad():
            found = model(input_ids=ids_BL, attention_mask=mask_BL, output_attentions=True)
        query, key = (caught[path].unflatten(-1, (4, -1)).transpose(1, 2) for path in row.qkv[:2])
        scores = query @ key.mT / query.shape[-1] ** 0.5
        scores = scores.masked_fill(mask_BL[:, None, None] == 0, float("-inf"))
        torch.testing.assert_close(found.attentions[0], scores.softmax(-1))


def test_albert_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"family albert, .*share one set of weights"):
        family_of(AlbertConfig(), "my-model")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            T5Config(),
            "my-model is an encoder-decoder (t5). Use an encoder, which Potstill distills.",
        ),
        (
            GPT2Config(),
            "my-model is a decoder (gpt2). Use an encoder, which Potstill distills.",
        ),
        (
            LlamaConfig(),
            "my-model is a decoder (llama). Use an encoder, which Potstill distills.",
        ),
        (
            BertConfig(is_decoder=True),
            "my-model is a decoder (bert). Use an encoder, which Potstill distills.",
        ),
        (
            FNetConfig(),
            f"my-model is of the unknown family fnet. Use one of {', '.join(FAMILIES)}, or add a "
            "row to models/families.py.",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_what_is_not_a_known_encoder_is_refused(config: PretrainedConfig, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        family_of(config, "my-model")


def test_known_families_are_found() -> None:
    assert family_of(BertConfig(), "x").model_type == "bert"
    assert family_of(DistilBertConfig(), "x").model_type == "distilbert"
