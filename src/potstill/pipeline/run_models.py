"""Find the models of a finished run: what its stages wrote, and what it was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from potstill.pipeline.inputs import given_folders
from potstill.recipe import Recipe, load_recipe, main_model, repeated
from potstill.reporting.phrases import MADE
from potstill.storage import RunFolder
from potstill.storage.files import read_json
from potstill.storage.onnx_files import is_onnx, weight_bytes

TEACHER = "teacher"


@dataclass(frozen=True)
class RunModel:
    """Hold one model of a run.

    Attributes:
        made: How it was made, in words: "distilled".
    """

    name: str
    path: Path
    made: str

    @property
    def runs_in(self) -> str:
        """Return what computes its outputs: PyTorch, or ONNX Runtime."""
        return "ONNX Runtime" if is_onnx(self.path) else "PyTorch"

    @property
    def bytes(self) -> int:
        """Return the size of its weights on disk."""
        return weight_bytes(self.path)


@dataclass(frozen=True)
class RunModels:
    """Hold a run's recipe and its models: teacher, student, others in order, untrained students.

    Attributes:
        absent: name -> why a model that the run was given can't be found any more.
    """

    recipe: Recipe
    models: list[RunModel]
    absent: Mapping[str, str]


def models_of_run(run: Path) -> RunModels:
    """Find the models of a run folder; for repeated trainings, the first one's.

    Nothing is downloaded: a teacher of the hub must be in its cache.

    Args:
        run: The run folder.

    Raises:
        ValueError: It is not a run folder, or a stage that makes a model is not finished.
    """
    path = run / "recipe.yaml"
    if not path.is_file():
        what = "not a run folder, there is no recipe.yaml" if run.is_dir() else "not found"
        raise ValueError(
            f"{run}: {what}. Give the folder that a run wrote, such as runs/quickstart."
        )
    recipe = load_recipe(path)
    found, absent = _given(recipe)
    further = {name for names in repeated(recipe.stages).values() for name in names[1:]}
    for number, stage in enumerate(recipe.stages, start=1):
        if not stage.written:
            continue
        folder = RunFolder(run).stage_folder(number, stage.kind)
        if not (folder / "DONE").is_file():
            raise ValueError(
                f"{run}: stage {number} ({stage.kind}) is not finished. Repeat the potstill run "
                "command to resume."
            )
        writes = read_json(folder / "DONE")["writes"]
        for name, where in writes.items():
            if name not in further:
                found[name] = RunModel(name, folder / where, MADE[stage.kind])
                absent.pop(name, None)
    main = main_model(recipe.stages)
    student = recipe.stages[main - 1].written[0] if main else TEACHER
    first = [name for name in (TEACHER, student) if name in found]
    last = [name for name, model in found.items() if model.made == MADE["make_student"]]
    between = [name for name in found if name not in last]
    order = dict.fromkeys([*first, *between, *last])
    return RunModels(recipe, [found[name] for name in order], absent)


def _given(recipe: Recipe) -> tuple[dict[str, RunModel], dict[str, str]]:
    """Return the models that no stage writes, and why others can't be found."""
    found, absent = {}, {}
    for name in (TEACHER, *recipe.teachers):
        try:
            folder = given_folders(recipe, names=[name], fetch=False)[name]
        except ValueError as error:
            absent[name] = str(error)
        else:
            found[name] = RunModel(name, folder, "given")
    return found, absent
