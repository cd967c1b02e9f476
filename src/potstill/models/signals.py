"""Signals of a model about a batch: hidden states, and distributions not yet computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.models.devices import exactly

# A logit that no softmax gives weight to, yet finite: 0 * it is 0 in the divergence.
EXCLUDED = -1e4
EMBEDDINGS = -1  # the number of the layer before the first one


@dataclass(frozen=True)
class Readout:
    """Hold the last linear map of a head, from features to logits.

    Every head Potstill knows ends in one: the tied decoder of masked LM [V x D], a classifier
    [V x D], the similarities to the other texts of a batch [K x D]. Keeping it apart lets
    objectives compute logits in chunks of rows, so that [tokens x vocabulary] never exists.

    Attributes:
        bias: [V], or [K x V] where each row has its own (a mask); None for zero.
        exact: Compute the logits in the features' own precision, whatever autocast says: two
            similarities of the same text differ by less than the precision of bfloat16.
    """

    weight_VD: Tensor
    bias: Tensor | None = None
    exact: bool = False

    def logits(self, features_kD: Tensor, rows: slice) -> Tensor:
        """Return logits [k x V] of some rows; `rows` selects them among the K."""
        if self.exact:
            with exactly(features_kD.device):
                return self._logits(features_kD, rows)
        return self._logits(features_kD, rows)

    def included(self, rows: slice) -> Tensor | None:
        """Return which classes belong to some rows (bool [k x V]); None: all."""
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
    """Hold one model's view of one batch of B texts of L tokens, with K distributions.

    Attributes:
        hidden_BLD: Last hidden states; for a cached teacher, which has none, [B x L x 0].
        features_KD: What the readout reads, one row per distribution.
        readout: Features -> logits; None for a model without a head.
        layers: Layer -> its output [B x L x D], for the layers in demand; EMBEDDINGS for what
            enters the first one. A norm after the last layer is not applied.
        qkv: Layer -> queries, keys and values [B x L x D], likewise. They are what the projections
            give: where positions rotate queries and keys, before that.
        vectors_BD: One vector per text: its embedding, or what a head over whole texts reads.
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
    """Widen to float32 at least, in which losses are computed whatever matrix products use."""
    return values if values.dtype == torch.float64 else values.float()


def check_same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    """Refuse tensors of different shapes."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"{what} of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ "
            "in shape. Use the same rows and the same width, or another objective."
        )
