"""A run without its weights: wrong models, columns and lengths show before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from potstill.models import load_config
from potstill.models.finite import check_stored
from potstill.pipeline.context import Outline, Outlook
from potstill.pipeline.stages.evaluate import seen_columns
from potstill.pipeline.stages.stage import file_of
from potstill.recipe import Recipe
from potstill.tasks import read_for


def rehearse(recipe: Recipe, given: Mapping[str, Path]) -> list[Outline]:
    """Go through the stages without weights, so that mistakes show before anything starts.

    Nothing is written.

    Args:
        given: folders of the models that no stage writes, by name.

    Returns:
        One outline per stage, in order.

    Raises:
        ValueError: what a stage would find wrong with its models, columns or lengths; weights
            that are not finite.
    """
    outlook, outlines = _outlook(recipe, given), []
    for number, stage in enumerate(recipe.stages, start=1):
        outlook.where = f"stage {number} ({stage.kind})"
        outline = file_of(stage).check(stage, outlook)
        if outline.model is not None:
            outlook.written |= dict.fromkeys(stage.models_written, outline.model)
        outlines.append(outline)
    for folder in given.values():
        check_stored(folder)  # last, for it takes longest
    return outlines


def _outlook(recipe: Recipe, given: Mapping[str, Path]) -> Outlook:
    """What the first stage is checked with: text that can't be read shows here."""
    if recipe.data is None:
        return Outlook(recipe, given, columns=seen_columns(recipe))
    teacher = load_config(given["teacher"])
    rows = read_for(recipe.task, recipe.data, teacher, recipe.seed)
    return Outlook(recipe, given, rows=rows)
