"""Read what a run found: the results of its finished stages, from its folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from potstill.recipe import lineage, main_model, parse_yaml, plain_twin, published_chain
from potstill.recipe.config import StageConfig
from potstill.recipe.stages import STAGES
from potstill.storage.files import read_json
from potstill.tasks.results import Benchmarked, Evaluation

MEASURING = [kind for kind, stage in STAGES.items() if "writes" not in stage.model_fields]
SUITE = "suite.json"
SUITE_KEYS: dict[str, type] = {
    **{"suite": str, "partial": bool, "partial_reasons": list, "baseline": str},
    **{"models": dict, "retention": dict, "tasks": dict},
}
_ALIKE = 1.1  # times as many steps as the plain twin, up to which the two count as trained alike
PER_MODEL = ("models", "retention", "intervals", "ratios")  # what those stages find of each model


@dataclass(frozen=True)
class StageResult:
    """Hold one finished stage: its folder's name, kind, resolved settings and result."""

    name: str
    kind: str
    settings: dict[str, Any]
    result: dict[str, Any]
    folder: Path

    @cached_property
    def _config(self) -> StageConfig:
        """Return the recipe's stage, unchecked: runs of older versions are read, too."""
        return STAGES[self.kind].model_construct(**self.settings)

    @property
    def writes(self) -> str | None:
        """Return the name of the model that the stage wrote; None: it writes no model."""
        return next(iter(self._config.written), None)

    @property
    def written(self) -> list[str]:
        """Return the same as a list, with the first one's name for a training that was repeated."""
        return self._config.written[:1]

    @property
    def compresses(self) -> bool:
        """Return whether the stage made another model of one without training it."""
        return self._config.compresses

    @property
    def made_from(self) -> str | None:
        """Return the name of the model that the stage made another of."""
        return self._config.made_from


@dataclass(frozen=True)
class Results:
    """Hold everything that a run folder records about a run.

    Attributes:
        suite: What `potstill evaluate --suite` wrote into the folder; None: it wrote nothing there.
    """

    run: Path
    stages: list[StageResult]
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]
    suite: dict[str, Any] | None = None

    def of(self, *kinds: str) -> list[StageResult]:
        """Return the stages of these kinds, in order."""
        return [stage for stage in self.stages if stage.kind in kinds]

    @cached_property
    def evaluation(self) -> Evaluation:
        """Return the last evaluation."""
        return cast(Evaluation, self._still_of("evaluate"))

    @cached_property
    def benchmark(self) -> Benchmarked:
        """Return the last benchmark."""
        return cast(Benchmarked, self._still_of("benchmark"))

    def _still_of(self, kind: str) -> dict[str, Any]:
        """Return the last result of a kind, without models that a later stage overwrote."""
        measured = self.of(kind)[-1:]
        if not measured:
            return {}
        result = measured[0].result
        anew = {stage.writes for stage in self._after(measured[0])} - {None}
        if result.get("baseline") in anew:
            return {}
        found = _without(result, anew)
        if "pass" in found:
            found["pass"] = _without(found["pass"], anew)
        if self._trained(result.get("baseline", "teacher")) in anew:
            for key in ("differences", "findings", "examples", "softened", "confusion", "twin"):
                found.pop(key, None)
        return found

    def _after(self, stage: StageResult) -> list[StageResult]:
        return self.stages[self.stages.index(stage) + 1 :]

    # --- models -----------------------------------------------------------------------------------

    @cached_property
    def baseline(self) -> str:
        """Return the name of the model that the others are compared with."""
        given = self.evaluation.get("baseline") or self.benchmark.get("baseline")
        return str(given or "teacher")

    @cached_property
    def student(self) -> str | None:
        """Return the model that the run is about: the last one distilled, else the last student
        made.
        """
        others = [name for name in self._measured if name != self.baseline]
        return self._trained(self.baseline) or (others[-1] if others else None)

    def _trained(self, baseline: str) -> str | None:
        number = main_model(self.stages, but=baseline)
        return self.stages[number - 1].writes if number is not None else None

    @cached_property
    def lineage(self) -> list[StageResult]:
        """Return the stages that led from the baseline to the last artifact made of the student."""
        written = [s for s in self.stages if s.writes and not s.compresses]
        mains = [s for s in written if s.writes == self.student]
        main = self.stages.index(mains[-1]) + 1 if mains else None
        numbers = lineage(self.stages, main, self.baseline) if main else []
        return [self.stages[number - 1] for number in numbers]

    @cached_property
    def chain(self) -> list[tuple[str, list[StageResult]]]:
        """Return the lineage as names of models, each with the stages that wrote it one after
        another.
        """
        steps = groupby(self.lineage, key=lambda stage: str(stage.writes))
        return [(name, list(stages)) for name, stages in steps]

    @property
    def last(self) -> str | None:
        """Return the last artifact made of the student, where it is another model."""
        name = self.chain[-1][0] if self.chain else None
        return None if name == self.student else name

    @cached_property
    def twin(self) -> str | None:
        """Return the model that was trained from the student's start without a teacher."""
        return self.evaluation.get("twin") or plain_twin(self.stages)

    @cached_property
    def published(self) -> str | None:
        """Return the model whose weights lie in model/: the student, or what was cut out of it
        later.
        """
        made = [self.stages[number - 1] for number in published_chain(self.stages)]
        names = [str(stage.writes) for stage in made if stage.kind not in ("export", "quantize")]
        return next((name for name in names[::-1] if name != self.baseline), self.student)

    @cached_property
    def untrained(self) -> str | None:
        """Return the student as it was made, where it was kept under its own name and scored."""
        retained = self.evaluation.get("retention", {})
        made = [str(stage.writes) for stage in self.of("make_student")]
        return next((name for name in made if name in retained and name != self.student), None)

    @cached_property
    def names(self) -> list[str]:
        """Return the models that were measured: the baseline, the student, then the others in
        order.
        """
        known = [*self._measured, *self.counted]
        first = [name for name in (self.baseline, self.student) if name in known]
        return list(dict.fromkeys([*first, *self._measured]))

    @cached_property
    def _measured(self) -> list[str]:
        sources = (self.evaluation, self.benchmark)
        names = [name for source in sources for name in source.get("models", {})]
        return list(dict.fromkeys(names)) or list(self.counted)

    @cached_property
    def counted(self) -> dict[str, int]:
        """Return parameters as stages counted them, for runs without a benchmark."""
        counts: dict[str, int] = {}
        for stage in self.stages:
            name, source = str(stage.writes), str(stage.made_from)
            found = stage.result.get("parameters", {})
            if stage.kind == "make_student":
                roles = {"teacher": source, "student": name}
                counts |= {roles[role]: number for role, number in found.items()}
            elif stage.kind in ("prune", "trim_vocabulary"):
                counts.setdefault(source, found["before"])
                counts[name] = found["after"]
            elif stage.kind in ("distill", "finetune") and source in counts:
                counts[name] = counts[source]
        return counts | {name: found["parameters"] for name, found in self.graphs.items()}

    def written_by(self, *kinds: str) -> dict[str, dict[str, Any]]:
        """Return the results of stages of these kinds, by the names of the models they wrote."""
        return {str(stage.writes): stage.result for stage in self.of(*kinds)}

    @cached_property
    def graphs(self) -> dict[str, dict[str, Any]]:
        """Return the results of exports, then of quantizations, by the names of the models they
        wrote.
        """
        return self.written_by("export") | self.written_by("quantize")

    # --- what a reader must not miss --------------------------------------------------------------

    @property
    def findings(self) -> list[str]:
        """Return what a reader must not miss of scores, graphs and pruned models, in sentences."""
        found = [*(self.evaluation.get("findings") or []), *self._unlike_twin()]
        trained = [stage.result for stage in self.of("finetune", "distill")]
        for result in [*trained, *self.graphs.values()]:
            found += result.get("findings", [])
        return found + [
            f"the model {stage.writes} was pruned and not trained after it: a distill stage would "
            "win back much of what that cost"
            for stage in self.of("prune")
            if not any(
                later.made_from == stage.writes and later.kind in ("distill", "finetune")
                for later in self._after(stage)
            )
        ]

    def _unlike_twin(self) -> list[str]:
        """Report a twin that was trained for another number of steps than the student."""
        named = [("distill", self.student), ("finetune", self.evaluation.get("twin"))]
        mine, twin = (
            next((stage for stage in self.stages[::-1] if (stage.kind, stage.writes) == one), None)
            for one in named
        )
        if mine is None or twin is None or mine.made_from != twin.made_from:
            return []
        steps = [one.result.get("steps") or 0 for one in (mine, twin)]
        early = any(one.result.get("stopped_early") for one in (mine, twin))
        if early or max(steps) <= _ALIKE * min(steps):
            return []
        return [
            f"{mine.writes} was trained for {steps[0]:,} steps and {twin.writes} for {steps[1]:,}, "
            "so the difference between them is not the teacher's alone; set training.max_steps of "
            "both stages to one number"
        ]


def said(baseline: str) -> str:
    """Return the name of a baseline in a sentence."""
    return "the teacher" if baseline == "teacher" else baseline


# --- files ----------------------------------------------------------------------------------------


def read_results(run: Path) -> Results:
    """Read the finished stages of a run folder, its recipe and its environment.

    What stands after a model that is not finished was found with a former one: it is left out.

    Raises:
        ValueError: The folder does not exist or has no finished stage, or a file is damaged.
    """
    if not run.is_dir():
        raise ValueError(f"{run}: the folder does not exist. Give the folder that a run wrote.")
    stages = []
    for folder in sorted((run / "stages").glob("*"), key=_number):
        if (folder / "result.json").is_file():
            stages.append(_read_stage(folder))
        elif folder.name.partition("-")[2] not in MEASURING:
            break
    if not stages:
        raise ValueError(
            f"{run}: no stage is finished (stages/*/result.json). Run the recipe first."
        )
    path, environment = run / "recipe.yaml", run / "environment.json"
    text = text_of(path)
    return Results(
        run,
        stages,
        recipe=parse_yaml(text, str(path)) if text else {},
        recipe_text=text,
        environment=_mapping(environment) if environment.is_file() else {},
        suite=_suite(run / SUITE),
    )


def _read_stage(folder: Path) -> StageResult:
    path = folder / "config.json"
    settings, result = _mapping(path).get("stage", {}), _mapping(folder / "result.json")
    kind = settings.get("kind")
    if kind not in STAGES:
        raise ValueError(
            f"{path}: {kind!r} is not a kind of stage. Delete {folder} and run the recipe again."
        )
    return StageResult(folder.name, kind, settings, result, folder)


def _suite(path: Path) -> dict[str, Any] | None:
    """Read suite.json, which `potstill evaluate --suite` wrote into a run folder, if it did.

    Raises:
        ValueError: The file is damaged.
    """
    if not path.is_file():
        return None
    read = read_json(path)
    found: dict[str, Any] = read if isinstance(read, dict) else {}
    missing = [key for key in SUITE_KEYS if not isinstance(found.get(key), SUITE_KEYS[key])]
    if missing:
        raise ValueError(
            f"{path}: the key {missing[0]!r} of a suite's result is missing or has another type. "
            "Delete the file, or run `potstill evaluate --suite` again."
        )
    return found


def _without(result: Mapping[str, Any], names: Collection[str | None]) -> dict[str, Any]:
    """Drop what was found of the models with these names."""
    found = dict(result)
    for key in PER_MODEL:
        if key in found:
            found[key] = {name: told for name, told in found[key].items() if name not in names}
    return found


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _mapping(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ValueError: The file holds something else, or can't be read.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(
            f"{path}: this is a JSON {type(found).__name__}, not an object. Run the stage again."
        )
    return found


def _number(folder: Path) -> tuple[int, str]:
    head = folder.name.partition("-")[0]
    return (int(head) if head.isdigit() else 0, folder.name)
