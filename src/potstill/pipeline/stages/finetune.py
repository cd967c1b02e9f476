"""The stage that trains a model on a task without a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import manual_seed

from potstill.pipeline.context import Context, Outline, Outlook
from potstill.pipeline.stages.train import (
    check_masking,
    check_training,
    opened,
    train_once,
    train_repeats,
)
from potstill.recipe import Finetune, InBatch, Task, gold_objective
from potstill.training.trainee import freeze

VERSION = 2


def check(stage: Finetune, outlook: Outlook) -> Outline:
    loaded = outlook.model(stage.model, untrained_head=True)
    check_training(stage.training, outlook, [loaded])
    check_masking(stage.masking, outlook, loaded)
    return Outline(stage, loaded)


def run(
    stage: Finetune, folder: Path, context: Context, fingerprint: str
) -> tuple[dict[str, Any], dict[str, str]]:
    context = context.cut_as(stage.model)

    def once(folder: Path, seed: int) -> dict[str, Any]:
        manual_seed(seed)  # of a new head's weights
        loaded = opened(stage.model, context, untrained_head=True)
        freeze(stage, loaded)
        settings = [gold_objective(context.task)], InBatch(), stage
        return train_once(loaded, [], *settings, masker, folder, seed, fingerprint, context)

    masker = context.masker(stage.masking) if context.task == Task.MASKED_LM else None
    return train_repeats(stage, folder, context, once)
