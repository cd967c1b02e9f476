"""A tiny model of every family in the table, none of whose parameters is at its initial value."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

HEADS: dict[str, Any] = {
    "headless": AutoModel,
    "masked_lm": AutoModelForMaskedLM,
    "classification": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "answers": AutoModelForQuestionAnswering,
}
# transformers has no such class
MISSING = {("nomic_bert", "answers"), ("eurobert", "answers")}

_ROBERTA = {"pad_token_id": 1, "max_position_embeddings": 66, "type_vocab_size": 1}
_SPECIFIC: dict[str, dict[str, Any]] = {
    "bert": {},
    "distilbert": {},
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "mpnet": {"pad_token_id": 1, "max_position_embeddings": 66},
    "electra": {"embedding_size": 16},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 4,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    # texts in tests are longer than the window
    "modernbert": {"local_attention": 8, "cls_token_id": 2, "sep_token_id": 3},
    "nomic_bert": {},
    "eurobert": {"num_key_value_heads": 2, "mask_token_id": 4},
}
NAMES = list(_SPECIFIC)


def family_config(name: str, layers: int = 6, **changes: Any) -> PretrainedConfig:
    width = {"width": "hidden_size", "heads": "num_attention_heads", "ffn": "intermediate_size"}
    depth = "num_hidden_layers"
    if name == "distilbert":
        width, depth = {"width": "dim", "heads": "n_heads", "ffn": "hidden_dim"}, "n_layers"
    settings: dict[str, Any] = {
        "vocab_size": 53,
        width["width"]: 24,
        width["heads"]: 4,
        width["ffn"]: 40,
        depth: layers,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        **_SPECIFIC[name],
    }
    return AutoConfig.for_model(name, **{**settings, **changes})


def family_model(name: str, head: str, layers: int = 6, **changes: Any) -> PreTrainedModel:
    """In eval mode, every parameter moved, so that one that is not copied shows."""
    torch.manual_seed(0)
    labels = {} if head in ("headless", "masked_lm", "answers") else {"num_labels": 3}
    model = HEADS[head].from_config(family_config(name, layers, **labels, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()
