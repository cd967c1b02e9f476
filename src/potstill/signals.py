"""What one model says about one batch: hidden states, and distributions not yet computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Readout:
    """The last linear map of a head, from features to logits.

    Every head Potstill knows ends in one: the tied decoder of masked LM [V x D], a classifier
    [V x D], the similarities to the other texts of a batch [K x D]. Keeping it apart lets
    objectives compute logits in chunks of rows, so that [tokens x vocabulary] never exists.

    Attributes:
        bias: [V], or [K x V] where each row has its own (a mask); None for zero.
        exact: compute the logits in the features' own precision, whatever autocast says: two
            similarities of the same text differ by less than bfloat16 can tell.
    """

    weight_VD: Tensor
    bias: Tensor | None = None
    exact: bool = False

    def logits(self, features_kD: Tensor, rows: slice) -> Tensor:
        """Logits [k x V] of some rows; `rows` says which of the K they are."""
        if self.exact:
            with torch.autocast(features_kD.device.type, enabled=False):
                return self._logits(features_kD, rows)
        return self._logits(features_kD, rows)

    def _logits(self, features_kD: Tensor, rows: slice) -> Tensor:
        bias = self.bias
        if bias is not None and bias.dim() == 2:
            return torch.addmm(bias[rows], features_kD, self.weight_VD.T)
        return F.linear(features_kD, self.weight_VD, bias)


@dataclass(frozen=True)
class Signals:
    """One model's view of one batch of B texts of L tokens, with K distributions.

    Attributes:
        hidden_BLD: last hidden states.
        features_KD: what the readout reads, one row a distribution.
        readout: features -> logits; None for a model without a head.
    """

    hidden_BLD: Tensor
    features_KD: Tensor | None = None
    readout: Readout | None = None
