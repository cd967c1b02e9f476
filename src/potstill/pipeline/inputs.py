"""Find what a recipe is given: teachers, text, run folder; report mistakes within a second."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from potstill.data.files import expand
from potstill.recipe import Files, Recipe, Teacher
from potstill.storage.places import local_folder, model_folder
from potstill.storage.run_folder import check_run


def check_inputs(recipe: Recipe, folder: Path) -> None:
    """Check the paths of run folder, local teachers and text, without reading any of them.

    Importing torch and transformers takes ten seconds; a mistyped path is found before.

    Args:
        recipe: The recipe that will run.
        folder: The run folder.

    Raises:
        ValueError: A path is missing, or the run folder can't hold this run.
    """
    check_run(folder, recipe.name)
    for key, teacher in _given(recipe).values():
        local_folder(teacher.model, f"{key}: '{teacher.model}'")
    own = [source for stage in recipe.stages for source in stage.text_sources]
    for source in [*recipe.text.all_sources, *own]:
        if isinstance(source, Files):
            expand(source)


def given_folders(
    recipe: Recipe, *, names: Collection[str] | None = None, fetch: bool = True
) -> dict[str, Path]:
    """Return local folders of the models that no stage writes, by name; hub models are fetched.

    Args:
        recipe: The recipe.
        names: The models that are wanted; None means all.
        fetch: Whether to download hub models (safetensors, configs and tokenizer only); False
            reads the hub's cache alone.

    Raises:
        ValueError: A folder or package is missing, or the hub can't be reached.
    """
    return {
        name: model_folder(key, teacher, fetch)
        for name, (key, teacher) in _given(recipe).items()
        if names is None or name in names
    }


def _given(recipe: Recipe) -> dict[str, tuple[str, Teacher]]:
    """Return the recipe's key for each model, and its value, by name."""
    further = {name: (f"teachers.{name}.model", t) for name, t in recipe.teachers.items()}
    return {"teacher": ("teacher.model", recipe.teacher), **further}
