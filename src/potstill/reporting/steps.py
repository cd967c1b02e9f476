"""What each artifact of a run costs and scores, and what each step to it contributed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.reporting.phrases import kept_note, vocabulary_note
from potstill.reporting.results import Results, StageResult
from potstill.reporting.table import flat_scores, number
from potstill.reporting.verdict import headline_retention
from potstill.tasks.score_names import HEADLINES, is_loss, label_of


@dataclass(frozen=True)
class Artifact:
    """A model, or a graph, that was measured.

    Attributes:
        latency: tokens of a text -> ms, median at batch 1.
        score: the one that the task is judged by; None: not scored.
    """

    name: str
    weight_bytes: int | None
    latency: Mapping[str, float]
    score: float | None


def headline_score(results: Results, metrics: Mapping[str, Any]) -> str | None:
    """The score that models are judged by, such as `retrieval.mrr`, the higher the better; None:
    nothing was scored.
    """
    kept, value = headline_retention(metrics, str(results.student))
    scores = metrics["models"].get(results.baseline, {}).get("scores", {})
    flat = [key for key in flat_scores(scores) if not is_loss(key)]
    own = f"{metrics['settings'].get('task')}.{metrics['settings'].get('metric')}"
    wanted = [kept] if value is not None else [own, *HEADLINES, *flat]
    return next((key for key in wanted if key in flat), None)


def artifacts(metrics: Mapping[str, Any], score: str | None) -> list[Artifact]:
    """All models of metrics.json, with the score of that name."""
    task, _, metric = (score or "").partition(".")
    return [
        Artifact(
            name,
            found.get("weight_bytes"),
            {n: one["p50"] for n, one in found.get("latency_ms", {}).items()},
            found.get("scores", {}).get(task, {}).get(metric),
        )
        for name, found in metrics["models"].items()
    ]


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Numbers of the points that no other beats: none costs less and scores as much, or scores
    more at the same cost. In order of their cost.
    """
    front: list[int] = []
    for point in sorted(range(len(costs)), key=lambda n: (costs[n], -scores[n])):
        if not front or scores[point] > scores[front[-1]]:
            front.append(point)
    return front


# --- steps ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """A value of a step, and what it is of the step's before: empty where that is not known."""

    text: str = ""
    change: str = ""


@dataclass(frozen=True)
class Step:
    """One step of the way from the teacher to what is shipped."""

    name: str
    what: str
    parameters: Share
    size: Share
    speeds: list[Share]  # times as fast as the baseline, at each length
    kept: Share


@dataclass(frozen=True)
class Steps:
    """The steps in order, the baseline first, and what the columns are of."""

    lengths: list[str]
    score: str | None
    rows: list[Step]

    @property
    def weighed(self) -> bool:
        """Whether the bytes of any of them are known."""
        return any(step.size.text for step in self.rows)


def steps_of(results: Results, metrics: Mapping[str, Any]) -> Steps | None:
    """What each step on the way to the run's last artifact contributed; None: there was no way.

    Changes are to the step before it that was measured: a ratio of ratios to the baseline, whose
    own interval is not known.
    """
    chain = results.chain
    key, _ = headline_retention(metrics, str(results.student))
    measured = [results.baseline, *(name for name, _ in chain)]
    lengths = {n: None for name in measured for n in _model(metrics, name).get("latency_ms", {})}
    found = Steps(sorted(lengths, key=int), label_of(key) if key else None, [])
    before: dict[str, float] = {}
    for name, stages in [(results.baseline, []), *chain]:
        values = dict(_values(results, metrics, name, key))
        found.rows.append(
            Step(
                name,
                "; ".join(map(_what, stages)) or "the start",
                _share(values, before, "parameters", 1e6, " M"),
                _share(values, before, "weight_bytes", 1e6, " MB"),
                [_speed(values, before, length) for length in found.lengths],
                _kept(values, before),
            )
        )
        before |= values
    return found if chain else None


def _model(metrics: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    entry: Mapping[str, Any] = metrics["models"].get(name, {})
    return entry


def _values(
    results: Results, metrics: Mapping[str, Any], name: str, key: str
) -> Iterator[tuple[str, float]]:
    entry, compared = _model(metrics, name), metrics["comparisons"].get(name, {})
    parameters = entry.get("parameters", results.counted.get(name))
    for what, value in (
        ("parameters", parameters),
        ("weight_bytes", entry.get("weight_bytes")),
        ("kept", compared.get("retention_by_score", {}).get(key)),
    ):
        if value is not None:
            yield what, value
    if name == results.baseline:
        yield from ((f"speed{length}", 1.0) for length in entry.get("latency_ms", {}))
        if key:
            yield "kept", 1.0
    yield from ((f"speed{n}", value) for n, value in compared.get("speedup", {}).items())


def _share(
    values: Mapping[str, float], before: Mapping[str, float], key: str, scale: float, unit: str
) -> Share:
    if key not in values:
        return Share()
    change = ""
    if before.get(key) and round(values[key] / before[key], 2) != 1:
        change = f"{values[key] / before[key] - 1:+.0%}"
    return Share(f"{number(values[key] / scale)}{unit}", _minus(change))


def _speed(values: Mapping[str, float], before: Mapping[str, float], length: str) -> Share:
    key = f"speed{length}"
    if key not in values:
        return Share()
    times = "\N{MULTIPLICATION SIGN}"
    change = f"{values[key] / before[key]:.2f}{times}" if before.get(key) else ""
    return Share(f"{values[key]:.2f}{times}", change)


def _kept(values: Mapping[str, float], before: Mapping[str, float]) -> Share:
    if "kept" not in values:
        return Share()
    change = f"{100 * (values['kept'] - before['kept']):+.1f} points" if "kept" in before else ""
    return Share(f"{values['kept']:.1%}", _minus(change))


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _what(stage: StageResult) -> str:
    """What a stage did, in a few words."""
    result, settings = stage.result, stage.settings
    match stage.kind:
        case "make_student":
            return f"{len(result['layers'])} of {result['teacher_layers']} layers"
        case "distill":
            return "distilled"
        case "finetune":
            return "fine-tuned"
        case "prune":
            return f"pruned to {kept_note(result)}"
        case "trim_vocabulary":
            return f"vocabulary: {vocabulary_note(result).partition(',' + ' ')[0]}"
        case "export":
            pruned = ", heads or units pruned layer by layer" if "pruned" in result else ""
            return f"ONNX, opset {result['opset']}{pruned}"
        case "quantize":
            return f"quantised, {settings.get('method', result.get('method'))}"
        case _:
            return stage.kind.replace("_", " ")
