"""Each kind of stage and its file: what it checks without weights, what it does, its version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, assert_never

from potstill.pipeline.context import Context, Outline, Outlook
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
from potstill.recipe import (
    Benchmark,
    Distill,
    Evaluate,
    Export,
    Finetune,
    MakeStudent,
    Prune,
    Quantize,
    Report,
    Stage,
    TrimVocabulary,
)
from potstill.storage.files import write_json


class StageFile(Protocol):
    """What the file of a stage has.

    Attributes:
        VERSION: raise it when what the stage does changes: finished stages of older runs then run
            again.
    """

    VERSION: int

    def check(self, stage: Any, outlook: Outlook) -> Outline:
        """Find what would stop the stage, without weights; nothing is written.

        Raises:
            ValueError: what it would find wrong with its models, text or settings.
        """

    def run(
        self, stage: Any, folder: Path, context: Context, fingerprint: str
    ) -> tuple[Mapping[str, Any], dict[str, str]]:
        """Do it; see `run_stage`.

        Returns:
            The result, and name -> path below the folder, of the models it wrote.
        """


def file_of(stage: Stage) -> StageFile:  # noqa: C901 - a table, a line a kind
    match stage:
        case Finetune():
            return finetune
        case MakeStudent():
            return make_student
        case Distill():
            return distill
        case Prune():
            return prune
        case TrimVocabulary():
            return trim_vocabulary
        case Export():
            return export
        case Quantize():
            return quantize
        case Evaluate():
            return evaluate
        case Benchmark():
            return benchmark
        case Report():
            return report
        case _:
            assert_never(stage)


def run_stage(stage: Stage, folder: Path, context: Context, fingerprint: str) -> dict[str, str]:
    """Run one stage into its folder, which has a result.json afterwards.

    Args:
        stage: What to do.
        folder: Where the stage writes; it exists.
        context: What the stages of the run share.
        fingerprint: Names what the stage does; a training resumes from checkpoints that carry it.

    Returns:
        name -> path below the folder, of the model it wrote (empty if none).
    """
    result, writes = file_of(stage).run(stage, folder, context, fingerprint)
    if context.is_main:
        write_json(folder / "result.json", result)
    return writes
