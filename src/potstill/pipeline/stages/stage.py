"""Choose the file of each kind of stage, and run a stage into its folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, assert_never, runtime_checkable

from potstill import recipe
from potstill.pipeline.context import Context
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
    """Name what the file of a stage has; it may also have what `ChecksAhead` names.

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

    def run(
        self, stage: Any, folder: Path, context: Context, fingerprint: str
    ) -> tuple[Mapping[str, Any], dict[str, str]]:
        """Run the stage; see `run_stage`.

        Returns:
            The result, and name -> path below the folder for the models that it wrote.
        """


@runtime_checkable
class ChecksAhead(Protocol):
    """Name what the file of a stage has that looks at weights or text before a training starts."""

    def check_ahead(self, stage: Any, context: Context, names: Collection[str]) -> None:
        """Refuse what the stage would refuse after that training.

        Args:
            stage: What the user asks for.
            context: What the stages share.
            names: The models that are now what they will be when the stage runs.
        """


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
        file = file_of(stage)
        if isinstance(file, ChecksAhead):
            file.check_ahead(stage, context, names)
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
