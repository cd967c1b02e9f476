"""A task's own loss of one model on a batch of training texts: what importance is measured by.

| task | the loss of a text |
|---|---|
| with labels | cross-entropy with the gold labels; of values the squared difference |
| masked LM | cross-entropy of the tokens that a mask hides |
| sentence embeddings | cross-entropy with a neighbour drawn from the model's own distribution |

Text without labels gives a sentence encoder nothing to be wrong about. A label that is drawn from
what the model itself predicts makes the expected squared gradient the Fisher information (Kunstner
et al. 2019, arXiv 1905.12558, equation 2): how much what it says of a text's neighbours changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from potstill.batches import Batch
from potstill.models import LoadedModel
from potstill.objectives import IGNORED, Rows, objective_sums
from potstill.recipe import VALUE_TASKS, GoldMse, HardTargets, InBatch, Objective
from potstill.signals import Signals
from potstill.teachers import Reading

TEXTS = 32  # of a forward pass; of sentence embeddings they are each other's neighbours
_CHUNK = 128  # rows of logits that exist at a time


class TaskLoss:
    """A model's loss on batches, each a sum over its texts.

    Args:
        seed: of the neighbours that are drawn, batch after batch.
    """

    def __init__(self, loaded: LoadedModel, seed: int = 0) -> None:
        self.loaded = loaded
        task = loaded.task
        self._objective: Objective = (
            GoldMse() if task in VALUE_TASKS else HardTargets(weight=1.0, target="gold")
        )
        self._reading = Reading.of(task, [self._objective], InBatch(), TEXTS)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, batch: Batch) -> Tensor:
        """The loss of a batch, with its gradient: a scalar."""
        signals = self._reading.signals(self.loaded, batch)
        total, _ = objective_sums(
            [self._objective],
            signals,
            [],
            self._rows(signals, batch),
            batch.attention_mask_BL.bool(),
            {self._objective.kind: 1.0},
            _CHUNK,
        )
        return total

    def mean(self, batches: Iterable[Batch]) -> float:
        """The mean over all that is predicted in some batches."""
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in batches:
                total += float(self(batch))
                count += self._reading.counts(batch)[self._objective.kind]
        return total / max(count, 1)

    def _rows(self, signals: Signals, batch: Batch) -> Rows:
        rows = self._reading.rows(batch)
        if self.loaded.task != "sentence_embedding":
            return rows
        assert signals.features_KD is not None
        assert signals.readout is not None
        with torch.no_grad():
            logits_KV = signals.readout.logits(signals.features_KD, slice(0, len(batch)))
            shares_KV = logits_KV.softmax(-1).cpu()
        drawn_K = torch.multinomial(shares_KV, 1, generator=self._generator)[:, 0]
        compared_K = rows.gold_K != IGNORED
        return replace(rows, gold_K=torch.where(compared_K, drawn_K.to(compared_K.device), IGNORED))
