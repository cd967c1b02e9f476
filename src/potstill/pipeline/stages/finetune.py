"""Train a model on a task without a teacher."""

from __future__ import annotations

from pathlib import Path

from potstill.pipeline.context import Context, Done
from potstill.pipeline.outlook import Outline, Outlook
from potstill.pipeline.stages.train import Lesson, check_masking, check_training
from potstill.recipe import Finetune, InBatch, gold_objective

VERSION = 2


def check(stage: Finetune, outlook: Outlook) -> Outline:
    loaded = outlook.model(stage.model, untrained_head=True)
    check_training(stage.training, outlook, [loaded])
    check_masking(stage.masking, outlook, loaded)
    return Outline(stage, loaded)


def run(stage: Finetune, folder: Path, context: Context, fingerprint: str) -> Done:
    text, gold = context.text_for(stage.model), gold_objective(context.task)
    return Lesson(stage, context, text, fingerprint, [gold], InBatch()).train(folder)
