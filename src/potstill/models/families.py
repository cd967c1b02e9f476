"""Where each architecture keeps its parts: one row per model type.

No other file knows their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from potstill.models.signals import Readout


@dataclass(frozen=True)
class Family:
    """Name an architecture's parts.

    Attributes:
        model_type: `config.model_type` of transformers.
        layers: Path of the list of layers, below the base model.
        qkv: Paths, below a layer, of the projections to queries, keys and values; or of the one
            that gives all three, in this order. Rotary positions are applied after them.
        attention_out: Path, below a layer, of the linear map that reads the heads' outputs.
        ffn: Paths, below a layer, of the FFN's linear maps: those that write its inner width, then
            the one that reads it.
        lm_transform: The masked-LM head before its decoder, applied in order: paths of modules, or
            functions that the architecture keeps in its code.
        lm_head: Prefixes of the parameters that belong to the masked-LM head; a decoder tied to
            the word embeddings belongs to them all the same.
        takes_token_types: Whether the model tells token types apart by token_type_ids.
        has_pooler: Whether the base model has a pooler that `add_pooling_layer=False` removes.
        plain_scores: Whether attention scores are queries times keys over the root of their width,
            and nothing else but a mask: no rotation, no relative positions.
        positions_from: The number of a text's first position; None: one more than `pad_token_id`.
        counts_from_pad: Whether a token's position is counted over the tokens that are not
            `pad_token_id`, so that its value is part of the function.
        first_layer_is_special: Whether layer 0 has other parts than the rest.
        positions_qk: Paths, below a layer, of projections of relative positions to heads.
        shared_heads: Whether one table serves the heads of all layers.
        ffn_width: What the config calls the FFN's inner width.
        head_count: Path, below a layer, of the attribute that holds the number of heads; empty: its
            code takes that from the shapes of its weights, as from `heads_width`.
        heads_width: The same for the attribute that holds the width of all heads together.
        head_biases: Path, below a layer, of the module whose third argument is a table
            [B x heads x L x L] that is added to the heads' scores; empty: there is none.
    """

    model_type: str
    layers: str
    qkv: tuple[str, ...]
    attention_out: str
    ffn: tuple[str, ...]
    lm_transform: tuple[str | Callable[[Tensor], Tensor], ...]
    lm_head: tuple[str, ...]
    takes_token_types: bool = False
    has_pooler: bool = False
    plain_scores: bool = False
    positions_from: int | None = 0
    counts_from_pad: bool = False
    first_layer_is_special: bool = False
    positions_qk: tuple[str, ...] = ()
    shared_heads: bool = False
    ffn_width: str = "intermediate_size"
    head_count: str = ""
    heads_width: str = ""
    head_biases: str = ""

    def inputs(self, config: PretrainedConfig) -> list[str]:
        """List a model's inputs; one with a single token type, or none, does not take types."""
        types = self.takes_token_types and getattr(config, "type_vocab_size", 2) > 1
        return ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]

    def position_limit(self, config: PretrainedConfig) -> int:
        """Return the longest input of a model in tokens, special tokens included."""
        first = self.positions_from
        if first is None:
            first = int(config.pad_token_id) + 1
        return int(config.max_position_embeddings) - first

    def layer_prefix(self, model: PreTrainedModel) -> str:
        """Return the prefix of the layers' parameters in a state dict, without the number."""
        base = "" if model.base_model is model else f"{model.base_model_prefix}."
        return f"{base}{self.layers}."

    def lm_features(self, model: PreTrainedModel, hidden_KD: Tensor) -> Tensor:
        """Compute what the masked-LM decoder reads, [K x D], from last hidden states [K x D]."""
        steps: tuple[Any, ...] = self.lm_transform
        if _own_matrix_product(model):
            head = "lm_predictions.lm_head"
            steps = (f"{head}.dense", f"{head}.transform_act_fn", f"{head}.LayerNorm")
        for step in steps:
            hidden_KD = (_submodule(model, step) if isinstance(step, str) else step)(hidden_KD)
        return hidden_KD

    def lm_head_parameters(self, model: PreTrainedModel) -> set[str]:
        """Name the parameters that belong to the masked-LM head alone.

        A decoder that is tied to the word embeddings adds its bias only, whichever of its two names
        a parameter goes by.
        """
        shared: Any = model.get_input_embeddings()
        return {
            name
            for name, parameter in model.named_parameters()
            if name.startswith(self.lm_head) and parameter is not shared.weight
        }


_BERT_LAYER: dict[str, Any] = {
    "layers": "encoder.layer",
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_out": "attention.output.dense",
    "ffn": ("intermediate.dense", "output.dense"),
    "plain_scores": True,
}
_LLAMA_LAYER: dict[str, Any] = {
    "layers": "layers",
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention_out": "self_attn.o_proj",
    "ffn": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
}
_ROBERTA: dict[str, Any] = {
    **_BERT_LAYER,
    "lm_transform": ("lm_head.dense", F.gelu, "lm_head.layer_norm"),
    "lm_head": ("lm_head.",),
    "has_pooler": True,
    "positions_from": None,
    "counts_from_pad": True,
}

FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            model_type="bert",
            **_BERT_LAYER,
            lm_transform=("cls.predictions.transform",),
            lm_head=("cls.predictions.",),
            takes_token_types=True,
            has_pooler=True,
        ),
        Family(
            model_type="distilbert",
            layers="transformer.layer",
            qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
            attention_out="attention.out_lin",
            ffn=("ffn.lin1", "ffn.lin2"),
            lm_transform=("vocab_transform", "activation", "vocab_layer_norm"),
            lm_head=("vocab_transform.", "vocab_layer_norm.", "vocab_projector."),
            plain_scores=True,
            ffn_width="hidden_dim",
        ),
        Family(model_type="roberta", **_ROBERTA),
        Family(model_type="xlm-roberta", **_ROBERTA),
        Family(model_type="camembert", **_ROBERTA),
        Family(
            model_type="mpnet",
            layers="encoder.layer",
            qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
            attention_out="attention.attn.o",
            ffn=("intermediate.dense", "output.dense"),
            lm_transform=("lm_head.dense", F.gelu, "lm_head.layer_norm"),
            lm_head=("lm_head.",),
            has_pooler=True,
            positions_from=2,  # whatever pad_token_id is
            counts_from_pad=True,
            shared_heads=True,
            heads_width="attention.attn.all_head_size",
            head_biases="attention.attn",
        ),
        Family(
            model_type="electra",
            **_BERT_LAYER,
            lm_transform=("generator_predictions",),
            lm_head=("generator_predictions.", "generator_lm_head."),
            takes_token_types=True,
        ),
        Family(
            model_type="deberta-v2",
            layers="encoder.layer",
            qkv=(
                "attention.self.query_proj",
                "attention.self.key_proj",
                "attention.self.value_proj",
            ),
            attention_out="attention.output.dense",
            ffn=("intermediate.dense", "output.dense"),
            lm_transform=("cls.predictions.transform",),
            lm_head=("cls.predictions.", "lm_predictions."),
            takes_token_types=True,
            positions_qk=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
            head_count="attention.self.num_attention_heads",
        ),
        Family(
            model_type="modernbert",
            layers="layers",
            qkv=("attn.Wqkv",),
            attention_out="attn.Wo",
            ffn=("mlp.Wi", "mlp.Wo"),
            lm_transform=("head",),
            lm_head=("head.", "decoder."),
            first_layer_is_special=True,
        ),
        Family(
            model_type="nomic_bert",
            **_LLAMA_LAYER,
            lm_transform=("cls.predictions.transform",),
            lm_head=("cls.predictions.",),
            takes_token_types=True,
            has_pooler=True,
        ),
        Family(model_type="eurobert", **_LLAMA_LAYER, lm_transform=(), lm_head=("lm_head.",)),
    )
}

# Encoders that Potstill cannot serve, and why.
REFUSED = {
    "albert": "all its layers share one set of weights, so fewer layers are not smaller",
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
# What a DistilBERT has no place for in a BERT checkpoint (token types are folded, not lost).
NOT_IN_DISTILBERT = (
    "bert.pooler.",
    "bert.embeddings.token_type_embeddings.",
    "cls.predictions.bias",
    "cls.seq_relationship.",
)
POSITIONS = "bert.embeddings.position_embeddings.weight"
TOKEN_TYPES = "bert.embeddings.token_type_embeddings.weight"
# DistilBERT's layer norms have this epsilon in their code; its config cannot set another.
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
    """Look up a model's architecture.

    Args:
        config: The model's config.
        called: Names the model in messages.

    Raises:
        ValueError: The model is a decoder, an encoder-decoder, or of a family without a row.
    """
    model_type = config.model_type
    family = FAMILIES.get(model_type)
    kind = ""
    if getattr(config, "is_encoder_decoder", False):
        kind = "an encoder-decoder"
    elif getattr(config, "is_decoder", False) or (family is None and _only_causal(model_type)):
        kind = "a decoder"
    if kind:
        raise ValueError(
            f"{called} is {kind} ({model_type}). Use an encoder, which Potstill distills."
        )
    if model_type in REFUSED:
        raise ValueError(
            f"{called} is of the family {model_type}, which cannot be distilled: "
            f"{REFUSED[model_type]}. Use another family."
        )
    if family is None:
        raise ValueError(
            f"{called} is of the unknown family {model_type}. Use one of {', '.join(FAMILIES)}, or "
            "add a row to models/families.py."
        )
    return family


def _only_causal(model_type: str) -> bool:
    causal = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return causal and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def lm_readout(model: PreTrainedModel) -> Readout:
    """Return the masked-LM decoder: weight [V x D] (often the word embeddings) and bias [V]."""
    if _own_matrix_product(model):
        embeddings: Any = model.get_input_embeddings()
        return Readout(embeddings.weight, _submodule(model, "lm_predictions.lm_head").bias)
    decoder: Any = model.get_output_embeddings()
    return Readout(decoder.weight, decoder.bias)


def _own_matrix_product(model: PreTrainedModel) -> bool:
    """Return whether it is DeBERTa's other head (`legacy: false`), which has no decoder module."""
    return hasattr(model, "lm_predictions")


# Where classes of transformers keep a task head's last linear map.
_LAST_LINEAR = ("classifier.out_proj", "classifier", "qa_outputs")


def last_linear(model: PreTrainedModel) -> nn.Linear:
    """Return the last linear map of a task's head, whose rows are its labels."""
    for path in _LAST_LINEAR:
        try:
            found = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(found, nn.Linear):
            return found
    raise AssertionError(f"{type(model).__name__} has no last linear map that is known")


def is_task_head(name: str, model: PreTrainedModel) -> bool:
    """Return whether a parameter belongs to a task's head, as does BERT's pooler in the encoder."""
    return not name.startswith(f"{model.base_model_prefix}.") or ".pooler." in name


def keep_heads(layer: nn.Module, family: Family, kept: Tensor, width: int) -> None:
    """Set which heads a layer with fewer of them has left, for this process: no config holds it.

    Args:
        layer: The layer, whose maps were cut.
        family: Its family.
        kept: Numbers of the heads that are left, int64.
        width: Size of one head.
    """
    for path, number in (
        (family.head_count, len(kept)),
        (family.heads_width, width * len(kept)),
    ):
        if path:
            module, _, name = path.rpartition(".")
            setattr(layer.get_submodule(module), name, number)
    if family.head_biases:

        def own_biases(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden_BLD, mask, bias_BHLL, *others = arguments
            return (hidden_BLD, mask, bias_BHLL[:, kept.to(bias_BHLL.device)], *others)

        layer.get_submodule(family.head_biases).register_forward_pre_hook(own_biases)


def _submodule(model: nn.Module, path: str) -> Any:
    # transformers keeps some activations as plain functions, which get_submodule would refuse
    return reduce(getattr, path.split("."), model)
