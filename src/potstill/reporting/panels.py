"""Pick the numbers that the report draws: retention, cost and score, seeds, temperatures.

Each function picks the numbers and their captions; `figures` draws them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from potstill.reporting import figures
from potstill.reporting.metrics_json import Metrics
from potstill.reporting.pages import EXCERPT, excerpt
from potstill.reporting.results import Results, said
from potstill.reporting.suites import suite_rows
from potstill.reporting.table import by_number, each, flat_scores, retentions
from potstill.reporting.verdict import headline, headline_retention
from potstill.tasks.results import Scores
from potstill.tasks.score_names import is_loss, label_of

CANDIDATES = 8  # bars of the softened distribution; all others are one bar


def kept(results: Results, metrics: Metrics) -> Markup | None:
    """Draw what each model retains of each score, with intervals."""
    groups: dict[str, list[figures.Bar]] = {}
    for key, shares in retentions(results, metrics).items():
        groups.setdefault(label_of(key), []).extend((name, *one) for name, one in shares.items())
    whose = f"{said(results.baseline)}'s"
    return figures.retention(groups, whose, key="kept") if groups else None


def headline_score(results: Results, metrics: Metrics) -> str | None:
    """Return the score that models are judged by, such as `retrieval.mrr`, the higher the better;
    None: nothing was scored.
    """
    scores = metrics["models"].get(results.baseline, {}).get("scores", {})
    flat = [key for key in flat_scores(scores) if not is_loss(key)]
    key, share = headline_retention(metrics, str(results.student))
    return headline(metrics, flat if share is None else [key] if key in flat else [])


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Return the numbers of the points that no other beats: none costs less and scores as much, or
    scores more at the same cost. In order of their cost.
    """
    front: list[int] = []
    for point in sorted(range(len(costs)), key=lambda n: (costs[n], -scores[n])):
        if not front or scores[point] > scores[front[-1]]:
            front.append(point)
    return front


def pareto(results: Results, metrics: Metrics) -> dict[str, Any] | None:
    """Draw score over latency at each length, and over size, of every model that has both."""
    score = headline_score(results, metrics)
    scores = _values(each(metrics["models"], "scores"), score or "")
    if score is None or len(scores) < 2:
        return None
    references = _values(results.evaluation.get("references", {}), score)
    best = max(references.items(), key=lambda item: item[1], default=None)
    reference = (label_of(best[0]), best[1]) if best else None  # of what takes no network
    models = {name: metrics["models"][name] for name in scores}
    sizes = {name: one.get("weight_bytes") for name, one in models.items()}
    axes = [
        (
            *(f"pareto{length}", f"ms for one text of {length} tokens"),
            {name: points["p50"] for name, points in times.items()},
        )
        for length, times in by_number(models, "latency_ms").items()
    ]
    weights = {name: size / 1e6 for name, size in sizes.items() if size}
    panels = []
    for key, cost, costs in [*axes, ("pareto-size", "MB of weights", weights)]:
        if len(costs) > 1:
            front = pareto_front(list(costs.values()), [scores[name] for name in costs])
            points = [
                figures.Point(name, costs[name], scores[name], sizes[name], number in front)
                for number, name in enumerate(costs)
            ]
            svg = figures.pareto(points, cost, label_of(score), key=key, reference=reference)
            panels.append({"title": cost, "svg": svg, "names": costs.keys()})
    if not panels:
        return None
    drawn = {name for panel in panels for name in panel["names"]}
    left_out = [name for name in metrics["models"] if name not in drawn]
    return {"panels": panels, "score": label_of(score), "left_out": left_out}


def _values(models: Mapping[str, Scores | None], score: str) -> dict[str, Any]:
    """Return one score of every model that has it."""
    task, _, metric = score.partition(".")
    found = {name: (scores or {}).get(task, {}).get(metric) for name, scores in models.items()}
    return {name: value for name, value in found.items() if value is not None}


def seeds(results: Results, metrics: Metrics) -> dict[str, Any] | None:
    """Draw the scores of all trainings of the models that were trained more than once.

    The baseline, the twin and the student come first. None: no model was trained more than once.
    """
    task = str(metrics["settings"].get("task"))
    every = _values(each(metrics["models"], "scores"), f"{task}.seeds")
    found = {name: values for name, values in every.items() if values and None not in values}
    if not any(len(values) > 1 for values in found.values()):
        return None
    order = [str(name) for name in (results.baseline, results.twin, results.student)]
    repeated = [name for name, values in found.items() if len(values) > 1]
    shown = {name: found[name] for name in [*order, *repeated] if name in found}
    score = label_of(f"{task}.{metrics['settings'].get('metric')}")
    svg = figures.seeds(shown, score, key="seeds")
    return {"svg": svg, "score": score}


def softened(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Draw the softened distributions, and list them as a table, the most likely at T = 1 first."""
    if not found or not found.get("temperatures"):
        return None
    by_heat = {
        name: list(found["temperatures"][name]) for name in sorted(found["temperatures"], key=float)
    }
    first = by_heat.get("1") or next(iter(by_heat.values()))
    order = sorted(range(len(first)), key=lambda number: -first[number])[:CANDIDATES]
    names = [excerpt(found["candidates"][number]) for number in order]
    shares = {name: [values[number] for number in order] for name, values in by_heat.items()}
    rest = {name: max(0.0, 1 - sum(values)) for name, values in shares.items()}
    has_rest = any(value > 5e-4 for value in rest.values())
    if has_rest:
        names.append("all others")
        shares = {name: [*values, rest[name]] for name, values in shares.items()}
    other = found.get("student", {}).get("1")
    students = [other[number] for number in order] if other else []
    top = max(*(max(v) for v in shares.values()), *rest.values(), *students, 0.0) * 1.06
    labels = [*map(str, range(1, len(order) + 1)), *(["rest"] if has_rest else [])]
    panels = list[Markup]()
    for name, values in shares.items():
        bars, marks = dict(zip(labels, values, strict=True)), students if name == "1" else ()
        key = f"heat{len(panels)}"
        panels.append(figures.distribution(bars, name, top=top, key=key, other=marks))
    return {
        "text": excerpt(found["text"], 3 * EXCERPT),
        "panels": panels,
        "temperatures": list(shares),
        "rows": list(zip(names, zip(*shares.values(), strict=True), strict=True)),
        "students": students,
        "has_rest": has_rest,
    }


# --- suites ---------------------------------------------------------------------------------------


def suite(results: Results) -> dict[str, Any] | None:
    """Return a suite's rows, and draw what each model retains of the baseline's score by task."""
    found = results.suite
    if found is None:
        return None
    groups: dict[str, list[figures.Bar]] = {}
    for task, told in found["tasks"].items():
        for name, own in found["retention"].items():
            share = own["tasks"][task]["score"]
            if share is not None:
                groups.setdefault(told["title"], []).append((name, share, None))
    whose = f"{said(found['baseline'])}'s"
    figure = figures.retention(groups, whose, key="suite") if groups else None
    return {**suite_rows(found), "figure": figure}


# --- confusion ------------------------------------------------------------------------------------

MOST_LABELS = 12  # of a matrix on the page; of more the commonest confusions are listed
LISTED = 10


def confusions(results: Results) -> dict[str, Any] | None:
    """Count which labels are predicted for which by the baseline, the student and its twin."""
    found = results.evaluation.get("confusion")
    labels = results.evaluation.get("labels")
    if not found or not labels:
        return None
    order = (results.baseline, results.student, results.twin)
    names = list(dict.fromkeys(str(name) for name in order if name in found))
    if len(labels) > MOST_LABELS:
        return {"labels": None, "models": [_commonest(n, found[n], labels) for n in names]}
    return {"labels": labels, "models": [_matrix(n, found[n], labels) for n in names]}


def _matrix(name: str, counts: Sequence[Sequence[int]], labels: Sequence[str]) -> dict[str, Any]:
    """Return one row per true label: its cells, each with the tenths of the row that it holds."""
    rows = [
        (label, [(count, 10 * count // max(sum(row), 1)) for count in row])
        for label, row in zip(labels, counts, strict=True)
    ]
    return {"name": name, "rows": rows}


def _commonest(name: str, counts: Sequence[Sequence[int]], labels: Sequence[str]) -> dict[str, Any]:
    wrong = [
        (count, sum(row), labels[right], labels[given])
        for right, row in enumerate(counts)
        for given, count in enumerate(row)
        if given != right and count
    ]
    wrong.sort(key=lambda each: -each[0])
    return {"name": name, "rows": wrong[:LISTED]}
