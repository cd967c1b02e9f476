"""The losses, as pure functions of tensors.

On logits (`logits.py`), on hidden states and attention (`hidden.py`), and their weighted sum over
objectives and teachers (`total.py`), in one pass over chunks of logits (`chunks.py`). `pairing.py`
says which layers, heads and widths of two models are compared.
"""

from __future__ import annotations

from potstill.data.sequences import IGNORED
from potstill.objectives.chunks import Rows
from potstill.objectives.hidden import (
    attention_mse,
    hidden_cosine,
    hidden_mse,
    patient_hidden,
    relations,
    vector_mse,
)
from potstill.objectives.logits import hard_targets, logits_mse, soft_targets, temperature_at
from potstill.objectives.total import objective_sums

__all__ = [
    "IGNORED",
    "Rows",
    "attention_mse",
    "hard_targets",
    "hidden_cosine",
    "hidden_mse",
    "logits_mse",
    "objective_sums",
    "patient_hidden",
    "relations",
    "soft_targets",
    "temperature_at",
    "vector_mse",
]
