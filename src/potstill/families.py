"""Where each architecture keeps its parts: one row a model type. The only file that knows their
names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from potstill.signals import Readout


@dataclass(frozen=True)
class Family:
    """Names of an architecture's parts.

    Attributes:
        model_type: `config.model_type` of transformers.
        layers: path of the list of layers, below the base model.
        lm_transform: modules of the masked-LM head before its decoder, applied in order.
        lm_head: prefixes of the parameters that belong to the masked-LM head alone.
        takes_token_types: whether the model reads token_type_ids.
        has_pooler: whether the base model has a pooler that `add_pooling_layer=False` leaves out.
        qkv: paths, below a layer, of the linear maps to queries, keys and values; or of one that
            gives all three, in this order along the width. Their outputs are what relations are
            over: where positions rotate queries and keys (rotary families), before the rotation.
        plain_scores: whether attention scores are q k^T / sqrt(d) and the mask, without rotated or
            relative positions: only then do queries and keys tell them.
    """

    model_type: str
    layers: str
    lm_transform: tuple[str, ...]
    lm_head: tuple[str, ...]
    takes_token_types: bool
    has_pooler: bool
    qkv: tuple[str, ...]
    plain_scores: bool


FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            model_type="bert",
            layers="encoder.layer",
            lm_transform=("cls.predictions.transform",),
            lm_head=("cls.predictions.",),
            takes_token_types=True,
            has_pooler=True,
            qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
            plain_scores=True,
        ),
        Family(
            model_type="distilbert",
            layers="transformer.layer",
            lm_transform=("vocab_transform", "activation", "vocab_layer_norm"),
            lm_head=("vocab_transform.", "vocab_layer_norm.", "vocab_projector."),
            takes_token_types=False,
            has_pooler=False,
            qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
            plain_scores=True,
        ),
    )
}

# Parameter names of BERT -> DistilBERT, replaced in this order. What is not listed keeps its name.
DISTILBERT_FROM_BERT = (
    ("bert.encoder.layer.", "distilbert.transformer.layer."),
    ("bert.embeddings.", "distilbert.embeddings."),
    (".attention.self.query.", ".attention.q_lin."),
    (".attention.self.key.", ".attention.k_lin."),
    (".attention.self.value.", ".attention.v_lin."),
    (".attention.output.dense.", ".attention.out_lin."),
    (".attention.output.LayerNorm.", ".sa_layer_norm."),
    (".intermediate.dense.", ".ffn.lin1."),
    (".output.dense.", ".ffn.lin2."),
    (".output.LayerNorm.", ".output_layer_norm."),
    ("cls.predictions.transform.dense.", "vocab_transform."),
    ("cls.predictions.transform.LayerNorm.", "vocab_layer_norm."),
    ("cls.predictions.decoder.", "vocab_projector."),
)
# Of a BERT checkpoint, what a DistilBERT has no place for (token types are folded, not lost).
NOT_IN_DISTILBERT = (
    "bert.pooler.",
    "bert.embeddings.token_type_embeddings.",
    "cls.predictions.bias",
    "cls.seq_relationship.",
)
POSITIONS = "bert.embeddings.position_embeddings.weight"
TOKEN_TYPES = "bert.embeddings.token_type_embeddings.weight"
# DistilBERT's layer norms have this epsilon in their code; its config can't say another.
DISTILBERT_EPS = 1e-12
# Student class by teacher class: those whose heads are the same function.
DISTILBERT_CLASS = {
    "BertModel": "DistilBertModel",
    "BertForMaskedLM": "DistilBertForMaskedLM",
    "BertForPreTraining": "DistilBertForMaskedLM",
    "BertForTokenClassification": "DistilBertForTokenClassification",
    "BertForQuestionAnswering": "DistilBertForQuestionAnswering",
}


def family_of(config: PretrainedConfig, called: str) -> Family:
    """The row of a model's architecture.

    Raises:
        ValueError: a decoder, an encoder-decoder, or a family that has no row; `called` names the
            model.
    """
    model_type = config.model_type
    family = FAMILIES.get(model_type)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{called} is an encoder-decoder ({model_type}); Potstill distils encoders"
        )
    decoder = getattr(config, "is_decoder", False)
    if decoder or (family is None and _only_causal(model_type)):
        raise ValueError(
            f"{called} is a decoder ({model_type}), not an encoder; Potstill distils encoders"
        )
    if family is None:
        raise ValueError(
            f"{called} is of the family {model_type}, which Potstill does not know "
            f"(it knows {', '.join(FAMILIES)}); families.py is where a row would be added"
        )
    return family


def _only_causal(model_type: str) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return (
        model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def lm_features(model: PreTrainedModel, hidden_KD: Tensor) -> Tensor:
    """What the masked-LM decoder reads, [K x D], from last hidden states [K x D]."""
    family = family_of(model.config, type(model).__name__)
    return reduce(
        lambda value, path: _submodule(model, path)(value), family.lm_transform, hidden_KD
    )


def lm_readout(model: PreTrainedModel) -> Readout:
    """The masked-LM decoder: weight [V x D] (usually the word embeddings) and bias [V]."""
    decoder: Any = model.get_output_embeddings()
    return Readout(decoder.weight, decoder.bias)


def is_lm_head(name: str, config: PretrainedConfig) -> bool:
    """Whether a parameter's name belongs to the masked-LM head alone."""
    return name.startswith(family_of(config, config.model_type).lm_head)


def layer_prefix(model: PreTrainedModel) -> str:
    """Prefix of the layers' parameters in the model's state dict, without the number."""
    family = family_of(model.config, type(model).__name__)
    base = "" if model.base_model is model else f"{model.base_model_prefix}."
    return f"{base}{family.layers}."


def _submodule(model: nn.Module, path: str) -> nn.Module:
    # transformers keeps some activations as plain functions, which get_submodule would refuse
    return reduce(getattr, path.split("."), model)
