"""The table of architectures, against what transformers itself computes."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertModel,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    T5Config,
)

from conftest import tiny_config
from potstill.families import (
    FAMILIES,
    family_of,
    is_lm_head,
    layer_prefix,
    lm_features,
    lm_readout,
)


def distilbert_config() -> DistilBertConfig:
    return DistilBertConfig(
        vocab_size=41, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=20
    )


def masked_lm_model(family: str) -> PreTrainedModel:
    """A model none of whose parameters is at its initial zero or one."""
    torch.manual_seed(0)
    models = {
        "bert": lambda: BertForMaskedLM(tiny_config(layers=2)),
        "distilbert": lambda: DistilBertForMaskedLM(distilbert_config()),
    }
    model = models[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_features_and_readout_are_the_models_own_logits(family: str) -> None:
    model = masked_lm_model(family)
    ids_BL = torch.randint(5, 40, (3, 11), generator=torch.Generator().manual_seed(1))
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, 7:] = 0
    with torch.no_grad():
        expected_BLV = model(input_ids=ids_BL, attention_mask=mask_BL).logits
        hidden_BLD = model.base_model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        features_KD = lm_features(model, hidden_BLD[mask_BL.bool()])
        readout = lm_readout(model)
        logits_KV = readout.logits(features_KD, slice(0, len(features_KD)))
    torch.testing.assert_close(logits_KV, expected_BLV[mask_BL.bool()])
    assert logits_KV.std() > 0.5  # the head does say something


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_what_the_base_model_lacks(family: str) -> None:
    model = masked_lm_model(family)
    base = {name for name, _ in model.base_model.named_parameters(prefix=model.base_model_prefix)}
    for name in model.state_dict():
        in_base = name in base or name.startswith(f"{model.base_model_prefix}.")
        assert is_lm_head(name, model.config) is not in_base, name


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_found_with_and_without_a_head(family: str) -> None:
    model = masked_lm_model(family)
    for each in (model, model.base_model):
        prefix = layer_prefix(each)
        names = [name for name in each.state_dict() if name.startswith(prefix)]
        assert {name.removeprefix(prefix).split(".")[0] for name in names} == {"0", "1"}
        per_layer = sum(p.numel() for n, p in each.named_parameters() if n.startswith(prefix)) / 2
        config = each.config
        width = config.hidden_size
        ffn = config.intermediate_size if family == "bert" else config.hidden_dim
        # four attention matrices and two of the FFN with their biases, two layer norms
        assert per_layer == 4 * (width**2 + width) + 2 * width * ffn + ffn + width + 4 * width


@pytest.mark.parametrize("family", FAMILIES)
def test_token_types_and_poolers_are_where_the_table_says(family: str) -> None:
    base = {"bert": BertModel, "distilbert": DistilBertModel}[family]
    row = FAMILIES[family]
    arguments = inspect.signature(base.forward).parameters
    assert ("token_type_ids" in arguments) is row.takes_token_types
    assert ("add_pooling_layer" in inspect.signature(base.__init__).parameters) is row.has_pooler


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            T5Config(),
            "my-model is an encoder-decoder (t5); Potstill distils encoders",
        ),
        (
            GPT2Config(),
            "my-model is a decoder (gpt2), not an encoder; Potstill distils encoders",
        ),
        (
            LlamaConfig(),
            "my-model is a decoder (llama), not an encoder; Potstill distils encoders",
        ),
        (
            BertConfig(is_decoder=True),
            "my-model is a decoder (bert), not an encoder; Potstill distils encoders",
        ),
        (
            RobertaConfig(),
            "my-model is of the family roberta, which Potstill does not know (it knows bert, "
            "distilbert); families.py is where a row would be added",
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
