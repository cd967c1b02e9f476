"""What the report draws of a run's numbers: kept scores, costs beside scores, seeds, temperatures.

Each function picks the numbers and their captions; `figures` draws them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from potstill.reporting import figures
from potstill.reporting.pages import EXCERPT, excerpt
from potstill.reporting.results import Results
from potstill.reporting.steps import artifacts, headline_score, pareto_front
from potstill.reporting.suites import suite_rows
from potstill.tasks.score_names import label_of

CANDIDATES = 8  # bars of the softened distribution; all others are one bar


def kept(results: Results, metrics: Mapping[str, Any]) -> Markup | None:
    """What each model keeps of each score, with intervals."""
    groups: dict[str, list[figures.Bar]] = {}
    intervals = results.evaluation.get("intervals", {})
    for name, compared in metrics["comparisons"].items():
        for key, value in compared.get("retention_by_score", {}).items():
            if value is not None:
                span = intervals.get(name, {}).get(key)
                bar = name, value, None if span is None else (span[0], span[1])
                groups.setdefault(label_of(key), []).append(bar)
    if not groups:
        return None
    return Markup(figures.retention(groups, possessive(results.baseline), key="kept"))


def possessive(baseline: str) -> str:
    """The baseline, as in "the teacher's score"."""
    return "the teacher's" if baseline == "teacher" else f"{baseline}'s"


def pareto(results: Results, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Score over latency at each length, and over size, of every model that has both."""
    score = headline_score(results, metrics)
    found = [one for one in artifacts(metrics, score) if one.score is not None]
    if score is None or len(found) < 2:
        return None
    reference = _reference(results, score)
    lengths = sorted({n for one in found for n in one.latency}, key=int)
    axes: list[tuple[str, str, dict[str, float]]] = [
        (
            f"pareto{length}",
            f"ms for one text of {length} tokens",
            {one.name: one.latency[length] for one in found if length in one.latency},
        )
        for length in lengths
    ]
    sizes = {one.name: one.weight_bytes / 1e6 for one in found if one.weight_bytes}
    axes.append(("pareto-size", "MB of weights", sizes))
    panels = []
    drawn: set[str] = set()
    for key, cost, costs in axes:
        if len(costs) > 1:
            points = _points(metrics, score, costs)
            svg = figures.pareto(points, cost, label_of(score), key=key, reference=reference)
            panels.append({"title": cost, "svg": Markup(svg)})
            drawn |= costs.keys()
    if not panels:
        return None
    left_out = [name for name in metrics["models"] if name not in drawn]
    return {"panels": panels, "score": label_of(score), "left_out": left_out}


def _points(
    metrics: Mapping[str, Any], score: str, costs: Mapping[str, float]
) -> list[figures.Point]:
    shown = [one for one in artifacts(metrics, score) if one.name in costs]
    values = [float(one.score or 0.0) for one in shown]
    front = pareto_front([costs[one.name] for one in shown], values)
    return [
        figures.Point(one.name, costs[one.name], value, one.weight_bytes, number in front)
        for number, (one, value) in enumerate(zip(shown, values, strict=True))
    ]


def _reference(results: Results, score: str) -> tuple[str, float] | None:
    """The best of what takes no network."""
    task, _, metric = score.partition(".")
    scored = {
        label_of(name): found[task][metric]
        for name, found in results.evaluation.get("references", {}).items()
        if found.get(task, {}).get(metric) is not None
    }
    return max(scored.items(), key=lambda item: item[1]) if scored else None


def seeds(results: Results, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scores of all trainings of the baseline, the twin, the student, and of what else was
    trained more than once; None: nothing was.
    """
    task = str(metrics["settings"].get("task"))
    found: dict[str, list[float]] = {}
    for name, model in metrics["models"].items():
        values = model.get("scores", {}).get(task, {}).get("seeds") or []
        if values and all(value is not None for value in values):
            found[name] = values
    if not any(len(values) > 1 for values in found.values()):
        return None
    order = [str(name) for name in (results.baseline, results.twin, results.student)]
    repeated = [name for name, values in found.items() if len(values) > 1]
    shown = {name: found[name] for name in [*order, *repeated] if name in found}
    score = label_of(f"{task}.{metrics['settings'].get('metric')}")
    svg = figures.seeds(shown, score, key="seeds")
    return {"svg": Markup(svg), "score": score}


def softened(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The softened distributions as figures and as a table, the most likely at T = 1 first."""
    if not found or not found.get("temperatures"):
        return None
    by_heat = {
        name: list(found["temperatures"][name]) for name in sorted(found["temperatures"], key=float)
    }
    first = by_heat.get("1") or next(iter(by_heat.values()))
    order = sorted(range(len(first)), key=lambda number: -first[number])[:CANDIDATES]
    shares = {
        name: [values[i] for i in order] + [max(0.0, 1 - sum(values[i] for i in order))]
        for name, values in by_heat.items()
    }
    other = found.get("student", {}).get("1")
    students = [other[i] for i in order] if other else []
    has_rest = any(values[-1] > 5e-4 for values in shares.values())
    top = max(*(max(values) for values in shares.values()), *students, 0.0) * 1.06
    panels = [
        Markup(
            figures.distribution(
                values[:-1],
                name,
                rest=values[-1] if has_rest else None,
                top=top,
                key=f"heat{number}",
                other=students if name == "1" else (),
            )
        )
        for number, (name, values) in enumerate(shares.items())
    ]
    rows = [
        (excerpt(found["candidates"][i]), [values[place] for values in shares.values()])
        for place, i in enumerate(order)
    ]
    if has_rest:
        rows.append(("all others", [values[-1] for values in shares.values()]))
    return {
        "text": excerpt(found["text"], 3 * EXCERPT),
        "panels": panels,
        "temperatures": list(shares),
        "rows": rows,
        "students": students,
        "has_rest": has_rest,
    }


# --- suites ---------------------------------------------------------------------------------------


def suite(results: Results) -> dict[str, Any] | None:
    """A suite's scores, medians over seeds, and what each model keeps of the baseline's by task."""
    found = results.suite
    if found is None:
        return None
    groups: dict[str, list[figures.Bar]] = {}
    for task, told in found["tasks"].items():
        for name, own in found["retention"].items():
            share = own["tasks"][task]["score"]
            if share is not None:
                groups.setdefault(told["title"], []).append((name, share, None))
    whose = possessive(found["baseline"])
    return {
        **suite_rows(found),
        "figure": Markup(figures.retention(groups, whose, key="suite")) if groups else None,
    }


# --- confusion ------------------------------------------------------------------------------------

MOST_LABELS = 12  # of a matrix on the page; of more the commonest confusions are listed
LISTED = 10


def confusions(results: Results) -> dict[str, Any] | None:
    """Which labels are taken for which, by the baseline, the student and its plain twin."""
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
    """A row a right label: its cells, each with the tenths of the row that it holds."""
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
