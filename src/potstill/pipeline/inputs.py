"""What a recipe is given: its teachers, its text, its run folder; mistakes found in a second."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from potstill.data.files import expand
from potstill.recipe import Files, Recipe, Teacher
from potstill.storage.places import local_folder, model_folder
from potstill.storage.run_folder import check_run


def check_inputs(recipe: Recipe, folder: Path) -> None:
    """Look at paths alone: run folder, local teachers, files of text. Nothing is read or written.

    Importing torch and transformers takes ten seconds; a mistyped path is found before.

    Raises:
        ValueError: a path is missing, or the run folder can't hold this run.
    """
    check_run(folder, recipe.name)
    for key, teacher in _given(recipe).values():
        local_folder(key, teacher)
    own = [source for stage in recipe.stages for source in stage.text_sources]
    for source in [*recipe.text.all_sources, *own]:
        if isinstance(source, Files):
            expand(source)


def given_folders(
    recipe: Recipe, *, names: Collection[str] | None = None, fetch: bool = True
) -> dict[str, Path]:
    """Folders here of the models that no stage writes, by name: the teacher's, and any further.

    A hub name is fetched (safetensors, configs, tokenizer only).

    Args:
        names: those that are wanted; None: all.
        fetch: False takes from the hub's cache alone, and writes nothing.

    Raises:
        ValueError: no such folder or package, or the hub can't be reached.
    """
    return {
        name: model_folder(key, teacher, fetch)
        for name, (key, teacher) in _given(recipe).items()
        if names is None or name in names
    }


def _given(recipe: Recipe) -> dict[str, tuple[str, Teacher]]:
    """Name of a model -> (the recipe's key for it, what stands there)."""
    further = {name: (f"teachers.{name}.model", t) for name, t in recipe.teachers.items()}
    return {"teacher": ("teacher.model", recipe.teacher), **further}
