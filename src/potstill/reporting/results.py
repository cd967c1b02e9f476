"""What a run found: the results of its finished stages, read from its folder, and metrics.json."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from potstill.recipe import lineage, main_model, parse_yaml, plain_twin
from potstill.storage.files import read_json

SUITE = "suite.json"
SUITE_KEYS: dict[str, type] = {
    **{"suite": str, "partial": bool, "partial_reasons": list, "baseline": str},
    **{"models": dict, "retention": dict, "tasks": dict},
}
MEASURING = ("evaluate", "benchmark", "report")  # the stages that write no model
TRAINING = ("make_student", "finetune", "distill")  # all others compress or export what there is
_ALIKE = 1.1  # times as many steps as the plain twin, up to which the two count as trained alike
PER_MODEL = ("models", "retention", "intervals", "ratios")  # what those stages find of each model


@dataclass(frozen=True)
class StageResult:
    """One finished stage: its folder's name, kind, resolved settings and result."""

    name: str
    kind: str
    settings: dict[str, Any]
    result: dict[str, Any]
    folder: Path

    @property
    def writes(self) -> str | None:
        """The name of the model that the stage wrote, if it writes one."""
        if self.kind == "make_student":
            return str(self.settings.get("writes") or "student")
        if self.kind in MEASURING:
            return None
        return str(self.settings.get("writes") or self.settings.get("model"))

    @property
    def models_written(self) -> list[str]:
        """The same as a list; of a training that was repeated the first one's model alone."""
        return [] if self.writes is None else [self.writes]

    @property
    def compresses(self) -> bool:
        """Whether it made another model of one without training it."""
        return self.kind not in (*TRAINING, *MEASURING)

    @property
    def made_from(self) -> str | None:
        """The name of the model that the stage made another of."""
        key = "teacher" if self.kind == "make_student" else "model"
        return None if self.kind in MEASURING else self.settings.get(key)


@dataclass(frozen=True)
class Results:
    """All that a run folder tells about a run."""

    run: Path
    stages: list[StageResult]
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """The last evaluation."""
        return self._still_of("evaluate")

    @cached_property
    def benchmark(self) -> dict[str, Any]:
        """The last benchmark."""
        return self._still_of("benchmark")

    def _still_of(self, kind: str) -> dict[str, Any]:
        """The last result of a kind, without the models that a later stage wrote anew: what was
        measured of those were former ones.
        """
        numbers = [n for n, stage in enumerate(self.stages) if stage.kind == kind]
        if not numbers:
            return {}
        result = self.stages[numbers[-1]].result
        anew = {stage.writes for stage in self.stages[numbers[-1] + 1 :]} - {None}
        if result.get("baseline") in anew:
            return {}
        found = _without(result, anew)
        if "pass" in found:
            found["pass"] = _without(found["pass"], anew)
        if self._trained(result.get("baseline", "teacher")) in anew:
            for key in ("differences", "findings", "examples", "softened", "confusion", "twin"):
                found.pop(key, None)
        return found

    @cached_property
    def baseline(self) -> str:
        """What the others are compared with."""
        given = self.evaluation.get("baseline") or self.benchmark.get("baseline")
        return str(given or "teacher")

    @cached_property
    def student(self) -> str | None:
        """The model that the run is about: the last one distilled, else the last student made."""
        others = [name for name in self._measured if name != self.baseline]
        return self._trained(self.baseline) or (others[-1] if others else None)

    def _trained(self, baseline: str) -> str | None:
        number = main_model(self.stages, but=baseline)
        return self.stages[number - 1].writes if number is not None else None

    @cached_property
    def chain(self) -> list[tuple[str, list[StageResult]]]:
        """What led from the teacher to the last artifact made of the student, in order: names of
        models, each with the stages that wrote it (one after another under the same name).
        """
        mains = [n for n, stage in enumerate(self.stages, 1) if stage.writes == self.student]
        mains = [n for n in mains if self.stages[n - 1].kind in TRAINING]
        if not mains:
            return []
        steps: list[tuple[str, list[StageResult]]] = []
        for number in lineage(self.stages, mains[-1], self.baseline):
            stage = self.stages[number - 1]
            if steps and steps[-1][0] == stage.writes:
                steps[-1][1].append(stage)
            else:
                steps.append((str(stage.writes), [stage]))
        return steps

    @cached_property
    def twin(self) -> str | None:
        """The model that was trained from the student's start, but without a teacher."""
        return self.evaluation.get("twin") or plain_twin(self.stages)

    @cached_property
    def published(self) -> str | None:
        """The model whose weights lie in model/: the student, or what was cut out of it after."""
        name, made = self.student, False
        for stage in self.stages:
            compresses = stage.kind in ("prune", "trim_vocabulary")
            if compresses and made and stage.settings.get("model") == name:
                name = stage.writes
            made = made or stage.writes == name
        return name

    @cached_property
    def names(self) -> list[str]:
        """Models that were measured: the baseline, the student, then the others in order."""
        known = [*self._measured, *self.counted]
        first = [name for name in (self.baseline, self.student) if name in known]
        return list(dict.fromkeys([*first, *self._measured]))

    @cached_property
    def untrained(self) -> str | None:
        """The student as it was made, where it was kept under a name of its own and scored."""
        made = [stage.writes for stage in self.stages if stage.kind == "make_student"]
        retained = self.evaluation.get("retention", {})
        return next((name for name in made if name in retained and name != self.student), None)

    @cached_property
    def _measured(self) -> list[str]:
        sources = (self.evaluation, self.benchmark)
        names = [name for source in sources for name in source.get("models", {})]
        return list(dict.fromkeys(names)) or list(self.counted)

    @cached_property
    def counted(self) -> dict[str, int]:
        """Parameters as stages counted them, for runs without a benchmark."""
        counts: dict[str, int] = {}
        for stage in self.stages:
            if stage.kind == "make_student":
                names = {
                    "teacher": stage.settings.get("teacher", "teacher"),
                    "student": stage.writes,
                }
                found = stage.result.get("parameters", {})
                counts |= {str(names[role]): number for role, number in found.items()}
            elif stage.kind in ("prune", "trim_vocabulary"):
                counts.setdefault(str(stage.made_from), stage.result["parameters"]["before"])
                counts[str(stage.writes)] = stage.result["parameters"]["after"]
            elif stage.kind in ("distill", "finetune") and stage.settings.get("model") in counts:
                counts[str(stage.writes)] = counts[stage.settings["model"]]
        graphs = self.exported | self.quantized
        return counts | {name: found["parameters"] for name, found in graphs.items()}

    @cached_property
    def suite(self) -> dict[str, Any] | None:
        """What `potstill evaluate --suite` wrote as suite.json into the run folder, if it did.

        Raises:
            ValueError: the file is not what it should be.
        """
        path = self.run / SUITE
        if not path.is_file():
            return None
        read = read_json(path)
        found: dict[str, Any] = read if isinstance(read, dict) else {}
        missing = [key for key in SUITE_KEYS if not isinstance(found.get(key), SUITE_KEYS[key])]
        if missing:
            raise ValueError(f"{path} is no suite's result (it has no {missing[0]}): remove it")
        return found

    @cached_property
    def exported(self) -> dict[str, dict[str, Any]]:
        """Results of exports, by the names of the models they wrote."""
        return {str(s.writes): s.result for s in self.stages if s.kind == "export"}

    @property
    def findings(self) -> list[str]:
        """What a reader must not miss of scores, graphs and pruned models, in sentences."""
        found = [*(self.evaluation.get("findings") or []), *self._unlike_twin()]
        trained = [s.result for s in self.stages if s.kind in ("finetune", "distill")]
        for result in [*trained, *self.exported.values(), *self.quantized.values()]:
            found += result.get("findings", [])
        return found + [
            f"the model {stage.writes} was pruned and not trained after it: a distill stage would "
            "win back much of what that cost"
            for stage in self.pruned
            if not self._trained_after(stage)
        ]

    def _unlike_twin(self) -> list[str]:
        """Whether the twin had another number of steps than the student: of what is between the two
        the teacher is a part alone.
        """
        named = [("distill", self.student), ("finetune", self.evaluation.get("twin"))]
        both = [
            next((s for s in reversed(self.stages) if (s.kind, s.writes) == one), None)
            for one in named
        ]
        mine, twin = both
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

    @property
    def pruned(self) -> list[StageResult]:
        """The stages that pruned."""
        return [stage for stage in self.stages if stage.kind == "prune"]

    def _trained_after(self, pruned: StageResult) -> bool:
        later = self.stages[self.stages.index(pruned) + 1 :]
        trains = [stage for stage in later if stage.kind in ("distill", "finetune")]
        return any(stage.settings.get("model") == pruned.writes for stage in trains)

    @cached_property
    def quantized(self) -> dict[str, dict[str, Any]]:
        """Results of quantisations, by the names of the models they wrote."""
        return {str(s.writes): s.result for s in self.stages if s.kind == "quantize"}


def read_results(run: Path) -> Results:
    """Read the finished stages of a run folder, its recipe and its environment.

    What stands after a model that is not finished was found with a former one: it is left out.

    Raises:
        ValueError: no such folder, no finished stage, or a file that is not what it should be.
    """
    if not run.is_dir():
        raise ValueError(f"{run} is not a run folder: give the folder that a run wrote")
    stages = []
    for folder in sorted((run / "stages").glob("*"), key=_number):
        if not (folder / "result.json").is_file():
            if folder.name.partition("-")[2] not in MEASURING:
                break
            continue
        settings = _mapping(folder / "config.json").get("stage", {})
        result = _mapping(folder / "result.json")
        kind = settings.get("kind", "")
        stages.append(StageResult(folder.name, kind, settings, result, folder))
    if not stages:
        raise ValueError(
            f"{run} holds no finished stage (stages/*/result.json): run the recipe first"
        )
    path, environment = run / "recipe.yaml", run / "environment.json"
    text = text_of(path)
    recipe = parse_yaml(text, str(path)) if text else {}
    return Results(
        run, stages, recipe, text, _mapping(environment) if environment.is_file() else {}
    )


def _without(result: Mapping[str, Any], names: Collection[str | None]) -> dict[str, Any]:
    """What was found of the models but for those of these names."""
    found = dict(result)
    for key in PER_MODEL:
        if key in found:
            found[key] = {name: told for name, told in found[key].items() if name not in names}
    return found


# --- files ----------------------------------------------------------------------------------------


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _mapping(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ValueError: it holds something else, or as `read_json`.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: a JSON {type(found).__name__}, where an object belongs")
    return found


def _number(folder: Path) -> tuple[int, str]:
    head = folder.name.partition("-")[0]
    return (int(head) if head.isdigit() else 0, folder.name)
