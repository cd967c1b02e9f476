"""Tiny BERT folders whose parameters are easily counted."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

V, D, FFN, POSITIONS = 50, 32, 37, 40


def bert_config(layers: int) -> BertConfig:
    return BertConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=FFN,
        max_position_embeddings=POSITIONS,
    )


def bert_parameters(layers: int) -> int:
    """Counted by hand: embeddings and their norm, layers."""
    layer = 4 * (D * D + D) + 2 * D + (D * FFN + FFN) + (FFN * D + D) + 2 * D
    return (V + POSITIONS + 2) * D + 2 * D + layers * layer


def write_folders(root: Path) -> dict[str, Path]:
    """A masked-LM teacher of two layers, and a pooled student of one."""
    torch.manual_seed(0)
    BertForMaskedLM(bert_config(2)).save_pretrained(root / "teacher")
    student = root / "student"
    BertModel(bert_config(1), add_pooling_layer=True).save_pretrained(student)
    (student / "modules.json").write_text("[]")
    (student / "1_Pooling").mkdir()
    (student / "1_Pooling" / "config.json").write_text("{}")
    return {name: root / name for name in ("teacher", "student")}
