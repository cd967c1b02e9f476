"""What one model says about one batch: hidden states, and distributions not yet computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

# A logit that no softmax gives weight to, yet finite: 0 * it is 0 in the divergence.
EXCLUDED = -1e4
EMBEDDINGS = -1  # the number of the layer before the first one


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

    def included(self, rows: slice) -> Tensor | None:
        """Which classes are some rows' own (bool [k x V]); None for all, as in a vocabulary."""
        if self.bias is None or self.bias.dim() == 1:
            return None
        return self.bias[rows] > EXCLUDED / 2

    def _logits(self, features_kD: Tensor, rows: slice) -> Tensor:
        bias = self.bias
        if bias is not None and bias.dim() == 2:
            return torch.addmm(bias[rows], features_kD, self.weight_VD.T)
        return F.linear(features_kD, self.weight_VD, bias)


@dataclass(frozen=True)
class Signals:
    """One model's view of one batch of B texts of L tokens, with K distributions.

    Attributes:
        hidden_BLD: last hidden states; of a cached teacher, which has none, [B x L x 0].
        features_KD: what the readout reads, one row a distribution.
        readout: features -> logits; None for a model without a head.
        layers: layer -> its output [B x L x D], of the layers that were asked for; EMBEDDINGS for
            what enters the first one. A norm after the last layer is not applied.
        qkv: layer -> queries, keys and values [B x L x D], likewise. They are what the projections
            give: where positions rotate queries and keys, before that.
        vectors_BD: one vector a text: its embedding, or what a head over whole texts reads.
    """

    hidden_BLD: Tensor
    features_KD: Tensor | None = None
    readout: Readout | None = None
    layers: Mapping[int, Tensor] = field(default_factory=dict)
    qkv: Mapping[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    vectors_BD: Tensor | None = None

    def logits(self, rows: slice | None = None) -> Tensor:
        """Return the logits of some rows, or of all: [k x V]."""
        assert self.features_KD is not None
        assert self.readout is not None
        rows = slice(0, len(self.features_KD)) if rows is None else rows
        return self.readout.logits(self.features_KD[rows], rows)


def wide(values: Tensor) -> Tensor:
    """Losses are computed in float32 at least, whatever the matrix products were computed in."""
    return values if values.dtype == torch.float64 else values.float()


def check_same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"{what} of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ "
            "in shape: this objective needs the same rows and the same width"
        )
