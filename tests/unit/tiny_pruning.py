"""What tests of pruning ask a tiny model, and where it keeps its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from potstill.compression.parts import Encoder
from potstill.compression.scores import Evidence
from potstill.models.families import FAMILIES
from tiny_families import HEADS, MISSING, NAMES

PAIRS = [(name, head) for name in NAMES for head in HEADS if (name, head) not in MISSING]


def inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    ids_BL = torch.randint(5, 53, (3, 12), generator=torch.Generator().manual_seed(5))
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, 7:] = 0
    ids_BL[mask_BL == 0] = int(model.config.pad_token_id)
    return {"input_ids": ids_BL, "attention_mask": mask_BL}


def encoder_of(model: PreTrainedModel) -> Encoder:
    return Encoder(model, FAMILIES[model.config.model_type])


def evidence(batches: Iterable[Any], loss: Callable[[Any], torch.Tensor]) -> Evidence:
    return Evidence(lambda: batches, loss)


def layers_of(model: PreTrainedModel) -> Any:
    return encoder_of(model).layers


def reader_of(layer: Any, model: PreTrainedModel) -> Any:
    return layer.get_submodule(FAMILIES[model.config.model_type].ffn[-1])


def summed_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits_BC, labels_B = model(**batch).logits, torch.tensor([0, 2, 1])
    return torch.nn.functional.cross_entropy(logits_BC, labels_B, reduction="sum")
