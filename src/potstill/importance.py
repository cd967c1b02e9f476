"""What importances are taken of: a model's own loss in its task, on texts that it was trained on.

With labels, and for masked LM, it is the loss that `finetune` lowers. Texts without labels have
none for a sentence encoder: there it is the loss of the model's own answer, the text that it finds
most alike. (Of a loss against all its answers the gradient would be 0.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from potstill.batches import Batch
from potstill.data import Examples, Tokens, collate
from potstill.masking import Masker
from potstill.models import LoadedModel
from potstill.recipe import VALUE_TASKS, GoldMse, HardTargets, InBatch, Objective
from potstill.teachers import LiveTeacher, Reading
from potstill.trainee import Trainee

BATCH = 16  # texts of one pass, which a sentence encoder's are compared within


def task_loss(loaded: LoadedModel, chunk_size: int = 128) -> Callable[[Batch], Tensor]:
    """A model's loss on a batch, summed over its texts (over tokens where these have labels).

    Args:
        chunk_size: rows of logits that exist at a time.
    """
    trainee, objective = _trainee(loaded, chunk_size)

    def loss(batch: Batch) -> Tensor:
        total: Tensor = trainee(batch, {objective.kind: 1.0})[0]
        return total

    return loss


def mean_loss(loaded: LoadedModel, batches: Iterable[Batch], chunk_size: int = 128) -> float:
    """The mean of `task_loss` over all that is predicted in some batches; not a number for none."""
    trainee, objective = _trainee(loaded, chunk_size)
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            total += float(trainee(batch, {objective.kind: 1.0})[0])
            count += trainee.reading.counts(batch)[objective.kind]
    return total / count if count else math.nan


def _trainee(loaded: LoadedModel, chunk_size: int) -> tuple[Trainee, Objective]:
    of_itself = loaded.task == "sentence_embedding"
    gold: Objective = GoldMse() if loaded.task in VALUE_TASKS else HardTargets(target="gold")
    objective = HardTargets(target="teacher") if of_itself else gold
    reading = Reading.of(loaded.task, [objective], InBatch(), BATCH)
    teachers = []
    if of_itself:  # a copy, for a teacher is frozen
        same = replace(loaded, model=copy.deepcopy(loaded.model))
        teachers = [LiveTeacher(same, reading)]
    return Trainee(loaded, teachers, reading, chunk_size), objective


def sampled_batches(
    loaded: LoadedModel, text: Tokens | Examples, count: int, masker: Masker | None, seed: int
) -> Iterator[Batch]:
    """Batches of `count` texts at most, drawn by the seed alone.

    Args:
        masker: of masked LM; None elsewhere.
    """
    chosen = np.random.default_rng(seed).permutation(len(text))[:count]
    pad = int(loaded.tokenizer.pad_token_id or 0)
    for start in range(0, len(chosen), BATCH):
        yield collate(text, chosen[start : start + BATCH], pad, masker, seed, 0)
