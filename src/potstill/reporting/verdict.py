"""The one sentence that a run comes to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.reporting.results import Results
from potstill.reporting.table import is_unsure, score_cell
from potstill.tasks.score_names import HEADLINES, label_of


def verdict(results: Results, metrics: Mapping[str, Any], name: str | None = None) -> str:
    """One sentence written from the numbers of metrics.json, whatever they say.

    Args:
        name: of the model it is about; None: the run's student.
    """
    student, baseline = name or results.student, results.baseline
    if student not in metrics["models"]:
        return _alone(results, metrics) or "This run has measured no student yet."
    compared = metrics["comparisons"].get(student, {})
    whose = "the teacher's" if baseline == "teacher" else f"{baseline}'s"
    kept = _kept(results, metrics, str(student), whose)
    graph = student in results.exported | results.quantized
    key, what = ("weight_bytes", "bytes") if graph else ("parameters", "parameters")
    size = _ratio(metrics, str(student), baseline, key)
    clauses = [kept] if kept else []
    if size is not None:
        share = f"{size:.2f} of"
        clauses.append(f"with {share} its {what}" if kept else f"has {share} {whose} {what}")
    sentence = " ".join(clauses)
    speedup = compared.get("speedup", {})
    if speedup:
        length = max(speedup, key=int)
        speed = _speed(results, metrics, str(student), length, speedup[length])
        sentence = f"{sentence} and {speed}" if sentence else speed
    trimmed = student == results.published and results.student == "student"
    named = f"The {'ONNX graph' if graph else 'model'} {student}"
    who = "The student" if student == "student" or trimmed else named
    return f"{who} {sentence}." if sentence else f"{who} has not been compared with {baseline}."


def _speed(
    results: Results, metrics: Mapping[str, Any], name: str, length: str, fast: float
) -> str:
    unsure = is_unsure(results.benchmark["ratios"][name]["speedup"][length])
    verb = "runs only" if fast < 1 and not unsure else "runs"
    doubts = ["measured on a noisy machine"] if metrics["settings"].get("noisy") else []
    doubts += ["faster or slower can't be told"] if unsure else []
    told = f" ({', '.join(doubts)})" if doubts else ""
    return f"{verb} {fast:.2f} times as fast at {length} tokens{told}"


def _alone(results: Results, metrics: Mapping[str, Any]) -> str | None:
    """Of a run that trains one model on a task, what that scores."""
    task, metric = (metrics["settings"].get(key) for key in ("task", "metric"))
    if any(stage.kind in ("distill", "make_student") for stage in results.stages) or not metric:
        return None
    value = metrics["models"].get(results.baseline, {}).get("scores", {}).get(task, {}).get(metric)
    if value is None:
        return None
    of = f"{label_of(f'{task}.{metric}')} on {metrics['settings']['records']:,} held-out examples"
    return f"The model scores {score_cell(value).text}: {of}."


def _kept(results: Results, metrics: Mapping[str, Any], student: str, whose: str) -> str | None:
    key, kept = headline_retention(metrics, student)
    if kept is None:
        return None
    what = f"{whose} {HEADLINES.get(key, label_of(key))}"
    verb = "reaches" if kept > 1 else "keeps" if kept >= 0.9 else "keeps only"
    text = f"{verb} {kept:.1%} of {what}"
    before = (
        metrics["comparisons"].get(results.untrained, {}).get("retention_by_score", {}).get(key)
    )
    if before is None or student in results.exported | results.quantized:
        return text
    lost = "" if kept > before else "; training it did not help"
    return f"{text} ({before:.1%} before training{lost})"


def headline_retention(metrics: Mapping[str, Any], name: str) -> tuple[str, float | None]:
    """The retention that a model is judged by: its key, such as `retrieval.mrr`, and its value."""
    retention = metrics["comparisons"].get(name, {}).get("retention_by_score", {})
    settings = metrics["settings"]
    own = f"{settings.get('task')}.{settings.get('metric')}"
    for key in [own, *HEADLINES, *retention]:
        if retention.get(key) is not None:
            return key, float(retention[key])
    return "", None


def _ratio(metrics: Mapping[str, Any], name: str, baseline: str, key: str) -> float | None:
    mine, other = (metrics["models"].get(n, {}).get(key) for n in (name, baseline))
    return mine / other if mine and other else None
