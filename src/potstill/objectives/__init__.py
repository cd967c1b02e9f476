"""Compute the losses: pure functions of tensors.

On logits (`logits.py`), on hidden states and attention (`hidden.py`), and their weighted sum over
objectives and teachers (`total.py`), in one pass over chunks of logits (`chunks.py`). `pairing.py`
says which layers, heads and widths of two models are compared.
"""

from __future__ import annotations

from potstill.data.sequences import IGNORED
from potstill.objectives import hidden, logits
from potstill.objectives.chunks import Rows
from potstill.objectives.hidden import *  # noqa: F403
from potstill.objectives.logits import *  # noqa: F403
from potstill.objectives.total import objective_sums

__all__ = ["IGNORED", "Rows", "objective_sums"]
__all__ += hidden.__all__
__all__ += logits.__all__
