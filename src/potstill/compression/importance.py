"""The loss that importance is measured on: a model's own in its task, on texts of the run.

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
from potstill.recipe import InBatch, Task, gold_objective
from potstill.tasks.heads import Reading

BATCH = 16  # texts of one pass, which a sentence encoder's are compared within
_CHUNK = 128  # rows of logits that exist at a time


def task_loss(loaded: LoadedModel) -> Callable[[Batch], Tensor]:
    """Return a model's loss on a batch, summed over its texts, or over tokens with labels."""
    reading = _reading(loaded)
    return lambda batch: _sum(loaded, reading, batch)


def mean_loss(loaded: LoadedModel, batches: Iterable[Batch]) -> float:
    """Return the mean of `task_loss` over all predictions in some batches; NaN for none."""
    reading = _reading(loaded)
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            total += float(_sum(loaded, reading, batch))
            count += sum(reading.counts(batch).values())
    return total / count if count else math.nan


def _reading(loaded: LoadedModel) -> Reading:
    return Reading.of(loaded.task, [gold_objective(loaded.task)], InBatch(), BATCH)


def _sum(loaded: LoadedModel, reading: Reading, batch: Batch) -> Tensor:
    signals, rows = reading.signals(loaded, batch), reading.rows(batch)
    if loaded.task == Task.SENTENCE_EMBEDDING:
        rows = _own_answers(signals, rows)
    objectives = [(objective, 1.0) for objective in reading.objectives]
    return objective_sums(objectives, signals, [], rows, _CHUNK)[0]


@torch.no_grad()
def _own_answers(signals: Signals, rows: Rows) -> Rows:
    """Replace the gold targets by those that the model itself finds most likely."""
    nearest_K = signals.logits().argmax(-1)
    return replace(rows, gold_K=torch.where(rows.gold_K != IGNORED, nearest_K, IGNORED))
