"""What a run found: the results of its finished stages, read from its folder, and metrics.json."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from potstill.runfolder import read_json

MEASURING = ("evaluate", "benchmark", "report")  # the stages that write no model


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


@dataclass(frozen=True)
class Results:
    """All that a run folder tells about a run."""

    run: Path
    stages: list[StageResult]
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]

    def last(self, kind: str) -> dict[str, Any]:
        """The result of the last stage of a kind; empty if none has finished."""
        return next((stage.result for stage in reversed(self.stages) if stage.kind == kind), {})

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        return self.last("evaluate")

    @cached_property
    def benchmark(self) -> dict[str, Any]:
        return self.last("benchmark")

    @cached_property
    def baseline(self) -> str:
        """What the others are compared with."""
        given = self.evaluation.get("baseline") or self.benchmark.get("baseline")
        return str(given or "teacher")

    @cached_property
    def student(self) -> str | None:
        """The model that the run is about: the last one distilled, else the last student made."""
        for kind in ("distill", "make_student", "finetune"):
            for stage in reversed(self.stages):
                if stage.kind == kind and stage.writes not in (None, self.baseline):
                    return stage.writes
        others = [name for name in self._measured if name != self.baseline]
        return others[-1] if others else None

    @cached_property
    def published(self) -> str | None:
        """The model whose weights lie in model/: the student, or what its trimming wrote."""
        name, made = self.student, False
        for stage in self.stages:
            if stage.kind == "trim_vocabulary" and made and stage.settings.get("model") == name:
                name = stage.writes
            made = made or stage.writes == name
        return name

    @cached_property
    def names(self) -> list[str]:
        """Models that were measured: the baseline, the student, then the others in order."""
        first = [name for name in (self.baseline, self.student) if name in self._measured]
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
            elif stage.kind == "trim_vocabulary":
                counts[str(stage.writes)] = stage.result["parameters"]["after"]
            elif stage.kind == "distill" and stage.settings.get("model") in counts:
                counts[str(stage.writes)] = counts[stage.settings["model"]]
        graphs = self.exported | self.quantized
        return counts | {name: found["parameters"] for name, found in graphs.items()}

    @cached_property
    def exported(self) -> dict[str, dict[str, Any]]:
        """Results of exports, by the names of the models they wrote."""
        return {str(s.writes): s.result for s in self.stages if s.kind == "export"}

    @property
    def findings(self) -> list[str]:
        """What a reader must not miss of scores and of smaller graphs, in sentences."""
        found = list(self.evaluation.get("findings") or [])
        trained = [s.result for s in self.stages if s.kind in ("finetune", "distill")]
        for result in [*trained, *self.exported.values(), *self.quantized.values()]:
            found += result.get("findings", [])
        return found

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
        settings = read_json(folder / "config.json").get("stage", {})
        result = read_json(folder / "result.json")
        kind = settings.get("kind", "")
        stages.append(StageResult(folder.name, kind, settings, result, folder))
    if not stages:
        raise ValueError(
            f"{run} holds no finished stage (stages/*/result.json): run the recipe first"
        )
    text = _text(run / "recipe.yaml")
    recipe = yaml.safe_load(text) or {}
    environment = run / "environment.json"
    return Results(
        run, stages, recipe, text, read_json(environment) if environment.is_file() else {}
    )


def build_metrics(run: Path) -> dict[str, Any]:
    """metrics.json of a run: `models`, `comparisons` against the baseline, `settings`.

    The last evaluate and the last benchmark stage count. What was not measured is left out; a
    number that is not finite is null. Retention is that of the evaluate stage: none for losses.

    Raises:
        ValueError: as `read_results`.
    """
    return metrics_of(read_results(run))


def metrics_of(results: Results) -> dict[str, Any]:
    """`build_metrics` of results that have been read."""
    evaluation, benchmark = results.evaluation, results.benchmark
    models = {}
    for name in results.names:
        measured = benchmark.get("models", {}).get(name, {})
        entry: dict[str, Any] = {}
        if "parameters" in measured or name in results.counted:
            entry["parameters"] = measured.get("parameters", results.counted.get(name))
        keys = ("weight_bytes", "latency_ms", "throughput_per_s", "peak_memory_bytes")
        graphs = results.exported | results.quantized
        weighed = {key: graphs[name][key] for key in keys[:1] if name in graphs}
        entry |= weighed | {key: measured[key] for key in keys if key in measured}
        if name in evaluation.get("models", {}):
            entry["scores"] = evaluation["models"][name]
        models[name] = entry
    comparisons = {}
    for name in results.names:
        ratios = benchmark.get("ratios", {}).get(name, {})
        entry = {}
        if name in evaluation.get("retention", {}):
            kept = evaluation["retention"][name]
            entry["retention"] = {}
            for key, share in kept.items():  # a task's first score is the one it is judged by
                entry["retention"].setdefault(key.partition(".")[0], share)
            entry["retention_by_score"] = kept
        if ratios:
            entry["speedup"] = {n: speed["median"] for n, speed in ratios["speedup"].items()}
            entry["size_ratio"] = ratios["size_ratio"]
        if entry and name != results.baseline:
            comparisons[name] = entry
    settings = {
        "recipe": results.recipe.get("name"),
        "task": evaluation.get("task") or results.recipe.get("task"),
        "seed": results.recipe.get("seed"),
        "baseline": results.baseline,
        "records": evaluation.get("records"),
        "metric": evaluation.get("metric"),
        **{key: benchmark.get(key) for key in ("threads", "batch", "rounds", "repeats")},
        **{key: benchmark.get(key) for key in ("throughput_batch", "throughput_length")},
        "noisy": benchmark.get("noise", {}).get("noisy"),
    }
    known = {key: value for key, value in settings.items() if value is not None}
    # what a reader must not miss, in sentences: of tasks with labels
    found = {"findings": results.findings} if results.findings else {}
    cleaned: dict[str, Any] = finite(
        {"models": models, "comparisons": comparisons, "settings": known, **found}
    )
    return cleaned


# --- training logs --------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossCurve:
    """One component of a training's loss: (step, loss) while training and on held-out text."""

    key: str
    train: list[tuple[float, float]]
    evaluated: list[tuple[float, float]]


def loss_curves(stage: StageResult) -> list[LossCurve]:
    """The weighted sum and each component from a stage's log.jsonl; empty if it logged nothing.

    A resumed run logs some steps twice: the later line counts. A half-written last line is skipped.
    """
    path = stage.folder / "log.jsonl"
    found: dict[str, dict[str, dict[int, float]]] = {}
    for line in _text(path).splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("event") not in ("train", "evaluate") or "step" not in event:
            continue
        for key, value in {"loss": event.get("loss"), **event.get("components", {})}.items():
            kinds = found.setdefault(key, {"train": {}, "evaluate": {}})
            kinds[event["event"]][event["step"]] = math.nan if value is None else float(value)
    if len(found) == 2:  # one component: the sum says the same
        del found["loss"]
    return [
        LossCurve(key, sorted(kinds["train"].items()), sorted(kinds["evaluate"].items()))
        for key, kinds in found.items()
    ]


# --- files ----------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _number(folder: Path) -> tuple[int, str]:
    head = folder.name.partition("-")[0]
    return (int(head) if head.isdigit() else 0, folder.name)


def finite(value: Any) -> Any:
    """The same tree with null for what JSON can't say: NaN and infinities."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
