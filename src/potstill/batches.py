"""What one forward pass reads."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """B sequences, padded on the right to the L tokens of the longest.

    Attributes:
        input_ids_BL: int64, masked where there is masking.
        attention_mask_BL: int64, 1 at real tokens.
        gold_BL: what is to be predicted, in the task's own shape. Masked LM: int64 [B x L], the
            original token at chosen positions and -100 elsewhere. Tasks: see heads.
        token_type_ids_BL: int64, for text pairs; None: all 0.
        numbers_B: int64, which examples of the data set they are, one a pair of texts; None where
            nobody asks.
        answerable_BL: bool, tokens at which an answer may begin or end; None: any.
    """

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    gold_BL: Tensor
    token_type_ids_BL: Tensor | None = None
    numbers_B: Tensor | None = None
    answerable_BL: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in own.items() if v is not None})

    def __len__(self) -> int:
        return len(self.input_ids_BL)
