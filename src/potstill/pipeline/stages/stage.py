"""Choose the file of each kind of stage; run stages into their folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, assert_never

from potstill import recipe
from potstill.pipeline.context import Context, Done
from potstill.pipeline.outlook import Outline, Outlook
from potstill.pipeline.stages import (
    benchmark,
    distill,
    evaluate,
    export,
    finetune,
    make_student,
    prune,
    quantize,
    report,
    trim_vocabulary,
)
from potstill.recipe import Stage
from potstill.storage.files import write_json


class StageFile(Protocol):
    """Name what the file of a stage has.

    It may also have `check_ahead(stage, context, names)`, which refuses before a training what the
    stage would refuse after it; `names`: the models that are now what they will be by then.

    Attributes:
        VERSION: Raise it when what the stage does changes; finished stages of older runs then run
            again.
    """

    VERSION: int

    def check(self, stage: Any, outlook: Outlook) -> Outline:
        """Find what would stop the stage, without weights and without writing anything.

        Raises:
            ValueError: The stage would refuse its models, text or settings.
        """

    def run(self, stage: Any, folder: Path, context: Context, fingerprint: str) -> Done:
        """Run the stage; see `run_stage`."""


def file_of(stage: Stage) -> StageFile:  # noqa: C901 - a table, a line a kind
    match stage:
        case recipe.Finetune():
            return finetune
        case recipe.MakeStudent():
            return make_student
        case recipe.Distill():
            return distill
        case recipe.Prune():
            return prune
        case recipe.TrimVocabulary():
            return trim_vocabulary
        case recipe.Export():
            return export
        case recipe.Quantize():
            return quantize
        case recipe.Evaluate():
            return evaluate
        case recipe.Benchmark():
            return benchmark
        case recipe.Report():
            return report
        case _:
            assert_never(stage)


def check_ahead(stages: Sequence[Stage], context: Context) -> None:
    """Refuse before a training what it or a later stage would refuse after it.

    Args:
        stages: The stage that trains, and those after it.
        context: What the stages share.

    Raises:
        ValueError: A teacher would teach nonsense, or too little text is held out.
    """
    names = set(context.models)
    for stage in stages:
        own_check = getattr(file_of(stage), "check_ahead", None)
        if own_check is not None:
            own_check(stage, context, names)
        names.difference_update(stage.written)


def run_stage(stage: Stage, folder: Path, context: Context, fingerprint: str) -> dict[str, str]:
    """Run one stage into its folder, which has a result.json afterwards.

    Args:
        stage: What to do.
        folder: Where the stage writes; it exists.
        context: What the stages of the run share.
        fingerprint: Names what the stage does; a training resumes from checkpoints that carry it.

    Returns:
        name -> path below the folder for the models that it wrote (empty if none).
    """
    result, writes = file_of(stage).run(stage, folder, context, fingerprint)
    if context.is_main:
        write_json(folder / "result.json", result)
    return writes
