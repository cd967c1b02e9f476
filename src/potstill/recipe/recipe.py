"""The recipe: what a run does, as data.

Every default is in this folder, so the resolved recipe that a run stores has every decision.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from potstill.recipe.compression import Student
from potstill.recipe.config import Config, Name, today
from potstill.recipe.data import Corpus, TaskData
from potstill.recipe.stages import Stage
from potstill.recipe.tasks import Task


class Teacher(Config):
    """Name a model: a path, `package:NAME/...` of an installed package, or org/name on the hub."""

    model: str
    revision: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class Recipe(Config):
    """Describe a run: a task, a teacher, text, and stages in order."""

    name: Name
    description: str = ""
    task: Task
    seed: Annotated[int, Field(ge=0)] = 1
    # Of training and evaluation; null: torch's own choice.
    threads: Annotated[int, Field(ge=1)] | None = None
    teacher: Teacher
    # Further models that stages read by these names; all share the teacher's vocabulary.
    teachers: dict[Name, Teacher] = {}
    # Text as it is, for masked LM and sentence embeddings; or the labelled examples of a task.
    corpus: Corpus | None = None
    data: TaskData | None = None
    student: Student = Student()  # what all make_student stages are asked for
    stages: Annotated[list[Stage], Field(min_length=1)]

    @property
    def text(self) -> Corpus | TaskData:
        """Return the text that models learn from."""
        found = self.corpus if self.data is None else self.data
        assert found is not None
        return found

    @model_validator(mode="before")
    @classmethod
    def _every_student(cls, value: Any) -> Any:
        """Copy the keys of `student` to the make_student stages."""
        if not isinstance(value, dict) or not isinstance(value.get("student"), dict):
            return value
        wanted, stages = value["student"], value.get("stages")
        if not wanted or not isinstance(stages, list):
            return value
        fields = Student.model_fields
        known = [key for key in wanted if today(key) in fields]
        asked = any(wanted[key] != fields[today(key)].default for key in known)
        handed, made = list(stages), False
        for number, stage in enumerate(stages, start=1):
            if not isinstance(stage, dict) or stage.get("kind") != "make_student":
                continue
            own = {today(key): item for key, item in stage.items()}
            for key in wanted:
                if own.get(today(key), wanted[key]) != wanted[key]:
                    raise ValueError(
                        f"student.{key}: {wanted[key]} differs from {own[today(key)]} in stage "
                        f"{number} (make_student). Omit one of the two."
                    )
            missing = {key: wanted[key] for key in wanted if today(key) not in own}
            handed[number - 1], made = {**missing, **stage}, True
        if asked and not made:
            raise ValueError("student: no stage makes a student. Add a make_student stage.")
        return {**value, "stages": handed}

    @model_validator(mode="after")
    def _names(self) -> Recipe:
        if "teacher" in self.teachers:
            raise ValueError(
                "teachers.teacher: the name belongs to the key teacher. Choose another name."
            )
        known = {"teacher", *self.teachers}
        writers: dict[str, Stage] = {}  # name -> the last stage that wrote it
        for number, stage in enumerate(self.stages, start=1):
            where = f"stage {number} ({stage.kind})"
            for name in stage.reads:
                if name not in known:
                    raise ValueError(
                        f"{where}: the model '{name}' is not written by a stage before it. Name "
                        f"one of these: {', '.join(sorted(known))}."
                    )
                if problem := stage.unreadable(writers.get(name)):
                    raise ValueError(f"{where}: the model '{name}' {problem}")
            known.update(stage.written)
            writers |= dict.fromkeys(stage.written, stage)
        return self

    @model_validator(mode="after")
    def _text(self) -> Recipe:
        wanted, other = ("corpus", "data") if self.task.reads_text else ("data", "corpus")
        if getattr(self, wanted) is None:
            raise ValueError(f"{wanted}: no value is set, and task {self.task} reads it. Set it.")
        if getattr(self, other) is not None:
            raise ValueError(f"{other}: task {self.task} does not read it. Omit it.")
        return self

    @model_validator(mode="after")
    def _held_out(self) -> Recipe:
        text, key = self.text, "corpus" if self.data is None else "data"
        own = text.dev if isinstance(text, TaskData) else text.heldout_sources
        for number, stage in enumerate(self.stages, start=1):
            if stage.needs_heldout and text.heldout == 0 and own is None:
                raise ValueError(
                    f"stage {number} ({stage.kind}): keep best and patience need held-out text. "
                    f"Raise {key}.heldout, or omit both."
                )
        return self

    @model_validator(mode="after")
    def _baselines(self) -> Recipe:
        last = {stage.kind: stage.compared_with for stage in self.stages}
        named = {name for name in last.values() if name is not None}
        if len(named) > 1:
            raise ValueError(
                "baseline: the last evaluate stage and the last benchmark stage name "
                f"{' and '.join(sorted(named))}, but share a table. Name the same model in both."
            )
        return self

    @model_validator(mode="after")
    def _task(self) -> Recipe:
        for number, stage in enumerate(self.stages, start=1):
            if problem := stage.unfit(self.task):
                raise ValueError(f"stage {number} ({stage.kind}): {problem}")
        return self
