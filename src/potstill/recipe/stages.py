"""The stages of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from potstill.recipe.compression import Export, MakeStudent, Prune, Quantize, TrimVocabulary
from potstill.recipe.measuring import Benchmark, Evaluate, Report
from potstill.recipe.training import Distill, Finetune

Stage = Annotated[
    Finetune
    | MakeStudent
    | Distill
    | Prune
    | TrimVocabulary
    | Export
    | Quantize
    | Evaluate
    | Benchmark
    | Report,
    Field(discriminator="kind"),
]
# Stages that make another model of the one they read, without training it.
_COMPRESSING = (Prune, TrimVocabulary, Export, Quantize)
# Stages whose models are .onnx files, and those that can read such a one.
WRITES_ONNX = (Export, Quantize)
READS_ONNX = (Quantize, Evaluate, Benchmark, Report)


def stage_reads(stage: Stage) -> list[str]:
    """Models that a stage names; null `models` of evaluate and benchmark are all there are."""
    match stage:
        case Finetune() | Prune() | TrimVocabulary():
            return [stage.model]
        case MakeStudent():
            return [stage.teacher]
        case Distill():
            return list(dict.fromkeys([stage.model, *(t.model for t in stage.teachers)]))
        case Export() | Quantize():
            return [stage.model]
        case Evaluate() | Benchmark():
            return list(dict.fromkeys([*(stage.models or []), stage.baseline]))
        case Report():
            return []


def main_model(stages: Sequence[Stage]) -> int | None:
    """The number, from 1, of the stage that writes the model a recipe is about; None: none does.

    It is the last `distill`, else the last `make_student`, else the last `finetune`.
    """
    for kind in (Distill, MakeStudent, Finetune):
        for number in range(len(stages), 0, -1):
            if isinstance(stages[number - 1], kind):
                return number
    return None


def scoring(stage: Quantize, names: Sequence[str]) -> Evaluate:
    """The evaluation that max_drop is judged by; the first name is its baseline."""
    return Evaluate(
        models=list(names),
        baseline=names[0],
        query=stage.query,
        passage=stage.passage,
        label=stage.label,
    )


def published_chain(stages: Sequence[Stage]) -> list[int]:
    """Numbers, from 1, of the stages that write the model a run publishes, in order: the last one
    that is finished counts.

    The first is `main_model`'s; the others compress or export what the one before them wrote.
    """
    main = main_model(stages)
    if main is None:
        return []
    chain, name = [main], stage_writes(stages[main - 1])[0]
    for number, stage in enumerate(stages[main:], start=main + 1):
        if isinstance(stage, _COMPRESSING) and stage.model == name:
            chain.append(number)
            name = stage_writes(stage)[0]
    return chain


def stage_writes(stage: Stage) -> list[str]:
    """Names of the models that a stage writes: none, one, or one for each repeat."""
    match stage:
        case Finetune() | Distill():
            name = stage.writes or stage.model
            return [name, *(f"{name}.{number}" for number in range(2, stage.repeats + 1))]
        case MakeStudent() | Export() | Quantize():
            return [stage.writes]
        case Prune() | TrimVocabulary():
            return [stage.writes or stage.model]
        case Evaluate() | Benchmark() | Report():
            return []


def repeated(stages: Sequence[Stage]) -> dict[str, list[str]]:
    """Name of a model -> the names of its repeats, itself first, of models that have some."""
    written = (stage_writes(stage) for stage in stages)
    return {names[0]: names for names in written if len(names) > 1}


def plain_twin(stages: Sequence[Stage]) -> str | None:
    """The model that was trained from the main student's start, but without a teacher."""
    number = main_model(stages)
    main = stages[number - 1] if number is not None else None
    if not isinstance(main, Distill):
        return None
    twins = [
        stage_writes(stage)[0]
        for stage in stages
        if isinstance(stage, Finetune) and stage.model == main.model
    ]
    return next((name for name in reversed(twins) if name not in stage_writes(main)), None)
