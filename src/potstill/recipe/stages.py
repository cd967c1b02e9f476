"""The stages of a recipe, and the lineage of the models that they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Protocol, get_args

from pydantic import Field

from potstill.recipe.compression import Export, MakeStudent, Prune, Quantize, TrimVocabulary
from potstill.recipe.config import StageConfig
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
STAGES: dict[str, type[StageConfig]] = {
    stage.model_fields["kind"].default: stage for stage in get_args(get_args(Stage)[0])
}


class Link(Protocol):
    """Describe a stage as the lineage of models needs it: from a recipe, or from a run on disk."""

    @property
    def kind(self) -> str: ...

    @property
    def compresses(self) -> bool: ...

    @property
    def made_from(self) -> str | None: ...

    @property
    def written(self) -> Sequence[str]: ...


def main_model(stages: Sequence[Link], but: str | None = None) -> int | None:
    """Find the stage that writes the model a recipe is about; return its number from 1, or None.

    It is the last `distill`, else the last `make_student`, else the last `finetune`. The model
    `but`, such as the baseline, does not count.
    """
    for kind in ("distill", "make_student", "finetune"):
        for number, stage in reversed(list(enumerate(stages, start=1))):
            if stage.kind == kind and stage.written[0] != but:
                return number
    return None


def published_chain(stages: Sequence[Link]) -> list[int]:
    """Number, from 1, the stages that write the model to publish: the last finished one counts.

    The first is `main_model`'s; each other one compresses or exports what the one before it wrote.
    """
    main = main_model(stages)
    return [] if main is None else [main, *_compressing(stages, main)]


def lineage(stages: Sequence[Link], main: int, given: str) -> list[int]:
    """Number, from 1, the stages between a given model and the last artifact of a main stage."""
    number, before = main, list[int]()
    while (source := stages[number - 1].made_from) != given:
        writers = [n for n in range(1, number) if source in stages[n - 1].written]
        if not writers:
            break
        number = writers[-1]
        before.insert(0, number)
    return [*before, main, *_compressing(stages, main)]


def _compressing(stages: Sequence[Link], main: int) -> list[int]:
    """Number the stages after `main` that each compress or export the model before them."""
    found, name = [], stages[main - 1].written[0]
    for number, stage in enumerate(stages[main:], start=main + 1):
        if stage.compresses and stage.made_from == name:
            found.append(number)
            name = stage.written[0]
    return found


def repeated(stages: Sequence[Link]) -> dict[str, Sequence[str]]:
    """Map the models that have repeats to the names of all of them, the model itself first."""
    written = (stage.written for stage in stages)
    return {names[0]: names for names in written if len(names) > 1}


def plain_twin(stages: Sequence[Link]) -> str | None:
    """Find the model that was trained from the main student's start, but without a teacher."""
    number = main_model(stages)
    main = stages[number - 1] if number is not None else None
    if main is None or main.kind != "distill":
        return None
    twins = [
        stage.written[0]
        for stage in stages
        if stage.kind == "finetune" and stage.made_from == main.made_from
    ]
    return next((name for name in reversed(twins) if name not in main.written), None)
