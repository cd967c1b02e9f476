"""Check a run without weights: find wrong models, columns and lengths before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from potstill.models import load_config
from potstill.models.finite import check_stored
from potstill.pipeline.outlook import Outline, Outlook
from potstill.pipeline.stages.evaluate import seen_columns
from potstill.pipeline.stages.stage import file_of
from potstill.recipe import Recipe
from potstill.tasks import read_for


def rehearse(recipe: Recipe, given: Mapping[str, Path]) -> list[Outline]:
    """Check all stages in order, without weights and without writing anything.

    Args:
        recipe: The recipe that will run.
        given: Folders of the models that no stage writes, by name.

    Returns:
        One outline per stage, in order.

    Raises:
        ValueError: A stage would refuse its models, columns or lengths, the text can't be read, or
            weights are not finite.
    """
    outlook, outlines = Outlook(recipe, given), []
    if recipe.data is None:
        outlook.columns = seen_columns(recipe)
    else:
        teacher = load_config(given["teacher"])
        outlook.rows = read_for(recipe.task, recipe.data, teacher, recipe.seed)
    for number, stage in enumerate(recipe.stages, start=1):
        outlook.where = f"stage {number} ({stage.kind})"
        outline = file_of(stage).check(stage, outlook)
        if outline.model is not None:
            outlook.written |= dict.fromkeys(stage.written, outline.model)
        outlines.append(outline)
    for folder in given.values():
        check_stored(folder)  # last, for it takes longest
    return outlines
