"""State in one sentence what a run comes to."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from potstill.reporting.metrics_json import Metrics
from potstill.reporting.results import Results, said
from potstill.reporting.table import each, is_unsure, score_cell
from potstill.tasks.score_names import HEADLINES, label_of


def verdict(results: Results, metrics: Metrics, name: str | None = None) -> str:
    """Return one sentence written from the numbers of metrics.json, whatever they say.

    Args:
        name: The model it is about; None: the run's student.
    """
    student = str(name or results.student)
    if student not in metrics["models"]:
        return _alone(results, metrics) or "This run has measured no student yet."
    whose = f"{said(results.baseline)}'s"
    kept = _kept(results, metrics, student, whose)
    clauses = [kept] if kept else []
    graph = student in results.graphs
    key, what = ("weight_bytes", "bytes") if graph else ("parameters", "parameters")
    sizes = each(metrics["models"], key)
    mine, other = sizes[student], sizes.get(results.baseline)
    if mine and other:
        share = f"{mine / other:.2f} of"
        clauses.append(f"with {share} its {what}" if kept else f"has {share} {whose} {what}")
    sentence = " ".join(clauses)
    if speedup := metrics["comparisons"].get(student, {}).get("speedup", {}):
        length = max(speedup, key=int)
        speed = _speed(results, metrics, results.benchmark["ratios"][student]["speedup"], length)
        sentence = f"{sentence} and {speed}" if sentence else speed
    trimmed = student == results.published and results.student == "student"
    named = f"The {'ONNX graph' if graph else 'model'} {student}"
    who = "The student" if student == "student" or trimmed else named
    return f"{who} {sentence or f'has not been compared with {results.baseline}'}."


def _speed(results: Results, metrics: Metrics, ratios: Mapping[str, Any], length: str) -> str:
    fast, unsure = ratios[length]["median"], is_unsure(ratios[length])
    verb = "runs only" if fast < 1 and not unsure else "runs"
    doubts = ["measured on a noisy machine"] if metrics["settings"].get("noisy") else []
    doubts += ["faster or slower can't be told"] if unsure else []
    told = f" ({', '.join(doubts)})" if doubts else ""
    return f"{verb} {fast:.2f} times as fast at {length} tokens{told}"


def _alone(results: Results, metrics: Metrics) -> str | None:
    """State the score of a model that a run trained on a task without a teacher."""
    task, metric = (str(metrics["settings"].get(key)) for key in ("task", "metric"))
    value = metrics["models"].get(results.baseline, {}).get("scores", {}).get(task, {}).get(metric)
    if results.of("distill", "make_student") or value is None:
        return None
    of = f"{label_of(f'{task}.{metric}')} on {metrics['settings']['records']:,} held-out examples"
    return f"The model scores {score_cell(value).text}: {of}."


def _kept(results: Results, metrics: Metrics, student: str, whose: str) -> str | None:
    key, kept = headline_retention(metrics, student)
    if kept is None:
        return None
    what = f"{whose} {HEADLINES.get(key, label_of(key))}"
    verb = "reaches" if kept > 1 else "keeps" if kept >= 0.9 else "keeps only"
    text = f"{verb} {kept:.1%} of {what}"
    before = _retention(metrics, results.untrained).get(key)
    if before is None or student in results.graphs:
        return text
    lost = "" if kept > before else "; training it did not help"
    return f"{text} ({before:.1%} before training{lost})"


def _retention(metrics: Metrics, name: str | None) -> dict[str, float]:
    shares = metrics["comparisons"].get(str(name), {}).get("retention_by_score", {})
    return {key: share for key, share in shares.items() if share is not None}


def headline_retention(metrics: Metrics, name: str) -> tuple[str, float | None]:
    """Return the retention that a model is judged by: its key, such as `retrieval.mrr`, and its
    value.
    """
    retention = _retention(metrics, name)
    key = headline(metrics, retention) or ""
    return key, retention.get(key)


def headline(metrics: Metrics, keys: Collection[str]) -> str | None:
    """Return the score that models are judged by, one of `keys`: the task's own, or a headline."""
    own = f"{metrics['settings'].get('task')}.{metrics['settings'].get('metric')}"
    return next((key for key in (own, *HEADLINES, *keys) if key in keys), None)
