"""What importances are taken of: a model's own loss in its task, on texts of the run.

With labels, and for masked LM, it is the loss that `finetune` lowers. Texts without labels have
none for a sentence encoder: there it is the loss of the model's own answer, the text that it finds
most alike. (Of a loss against all its answers the gradient would be 0.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from potstill.data import Batch
from potstill.data.sequences import IGNORED
from potstill.models import LoadedModel, Signals
from potstill.objectives import Rows, objective_sums
from potstill.recipe import GoldMse, HardTargets, InBatch, Objective, Task
from potstill.tasks.heads import Reading

BATCH = 16  # texts of one pass, which a sentence encoder's are compared within
_CHUNK = 128  # rows of logits that exist at a time


def task_loss(loaded: LoadedModel) -> Callable[[Batch], Tensor]:
    """A model's loss on a batch, summed over its texts (over tokens where these have labels)."""
    reading = _reading(loaded)
    return lambda batch: _sum(loaded, reading, batch)


def mean_loss(loaded: LoadedModel, batches: Iterable[Batch]) -> float:
    """The mean of `task_loss` over all that is predicted in some batches; not a number for none."""
    reading = _reading(loaded)
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            total += float(_sum(loaded, reading, batch))
            count += sum(reading.counts(batch).values())
    return total / count if count else math.nan


def _reading(loaded: LoadedModel) -> Reading:
    hard = HardTargets(target="gold")
    objective: Objective = hard if loaded.task.has_distribution else GoldMse()
    return Reading.of(loaded.task, [objective], InBatch(), BATCH)


def _sum(loaded: LoadedModel, reading: Reading, batch: Batch) -> Tensor:
    signals, rows = reading.signals(loaded, batch), reading.rows(batch)
    if loaded.task == Task.SENTENCE_EMBEDDING:
        rows = _own_answers(signals, rows)
    total, _ = objective_sums(
        reading.objectives,
        signals,
        [],
        rows,
        batch.attention_mask_BL.bool(),
        {objective.kind: 1.0 for objective in reading.objectives},
        _CHUNK,
    )
    return total


@torch.no_grad()
def _own_answers(signals: Signals, rows: Rows) -> Rows:
    """The gold targets are those that the model itself finds most likely."""
    assert signals.features_KD is not None
    assert signals.readout is not None
    logits_KV = signals.readout.logits(signals.features_KD, slice(0, len(rows.gold_K)))
    nearest_K = logits_KV.argmax(-1)
    return replace(rows, gold_K=torch.where(rows.gold_K != IGNORED, nearest_K, IGNORED))
