"""The report of a run: metrics.json and report.html, one file that opens offline.

Whatever comes from outside (names, texts, labels, versions) is escaped by Jinja's autoescape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from potstill import figures, recipe, recipe_files
from potstill.cards import write_card
from potstill.comparison import (
    Row,
    comparison_rows,
    effort,
    findings_of,
    label_of,
    number,
    objective_note,
    start_of,
    title_of,
    verdict,
    vocabulary_note,
    warnings_of,
)
from potstill.results import Results, build_metrics, loss_curves, metrics_of, read_results
from potstill.runfolder import write_json, write_text

__all__ = ["build_metrics", "write_card", "write_report"]

CANDIDATES = 8  # bars of the softened distribution; all others are one bar
EXCERPT = 160  # characters of a text in a table


def write_report(run: Path, settings: recipe.Report) -> Path:
    """Write metrics.json and report.html into a run folder; what a run has not done is left out.

    Returns:
        The path of report.html.

    Raises:
        ValueError: no run folder, no finished stage, a broken file, or matplotlib is not installed.
    """
    figures.require_matplotlib()
    results = read_results(run)
    metrics = metrics_of(results)
    page = _html().get_template("report.html.j2").render(_page(results, metrics, settings))
    write_json(run / "metrics.json", metrics)
    write_text(run / "report.html", page)
    return run / "report.html"


# --- the page -------------------------------------------------------------------------------------


def _page(results: Results, metrics: Mapping[str, Any], settings: recipe.Report) -> dict[str, Any]:
    return {
        "title": settings.title or title_of(results),
        "description": results.recipe.get("description", ""),
        "text_language": settings.language,
        "verdict": verdict(results, metrics),
        "findings": findings_of(results),
        "student": results.student,
        **_table(results, metrics),
        "exported": results.exported,
        "vocabularies": _vocabularies(results),
        "quantized": results.quantized,
        "layer_maps": _layer_maps(results),
        "curves": _curves(results),
        "softened": _softened(results.evaluation.get("softened")),
        "examples": _examples(results.evaluation.get("examples") or [], settings.examples),
        "counts": _counts(results),
        "warnings": warnings_of(results),
        "noise": results.benchmark.get("noise", {}).get("message"),
        "environment": list(_flat(results.environment)),
        "command": _command(results),
        "recipe": results.recipe_text,
    }


def _table(results: Results, metrics: Mapping[str, Any]) -> dict[str, Any]:
    references = list(results.evaluation.get("references", {}))
    columns = [*results.names, *references]
    rows = comparison_rows(results, metrics)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    headings = [label_of(name) if name in references else name for name in columns]
    return {"columns": list(zip(columns, headings, strict=True)), "groups": groups}


def _vocabularies(results: Results) -> list[dict[str, Any]]:
    """What each trimming kept, and how much of held-out text that covers."""
    found = []
    for stage in results.stages:
        if stage.kind == "trim_vocabulary":
            rows = [
                (
                    _excerpt(source),
                    f"{told['tokens_kept']:.1%}",
                    f"{told['words_kept']:.1%}",
                    f"{told['longer']:.3f}",
                    f"{told['unknown_before']:.2%}",
                    f"{told['unknown_after']:.2%}",
                )
                for source, told in stage.result["coverage"].items()
            ]
            sentence = vocabulary_note(stage.result)
            found.append({"name": stage.writes, "sentence": sentence, "rows": rows})
    return found


def _layer_maps(results: Results) -> list[dict[str, Any]]:
    """One figure for each different map, with the names of the students that have it."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for stage in results.stages:
        if stage.kind != "make_student":
            continue
        layers, depth = stage.result["layers"], stage.result["teacher_layers"]
        start = start_of(stage.result)
        told = (stage.result.get(key) for key in ("chosen", "from_type", "to_type", "rule"))
        key = (depth, *layers, start, *told)
        new = {"students": [], "result": {"chosen": "", **stage.result}, "start": start}
        entry = found.setdefault(key, new)
        entry["students"].append(stage.writes)
        entry["svg"] = Markup(figures.layer_map(layers, depth, key=f"layers{len(found)}"))
    return list(found.values())


def _curves(results: Results) -> list[dict[str, Any]]:
    trainings = []
    for stage in results.stages:
        if stage.kind not in ("distill", "finetune"):
            continue
        weights = {o["kind"]: o for o in stage.result.get("objectives", [])}
        panels = []
        for curve in loss_curves(stage):
            label = label_of(curve.key)
            svg = figures.loss_curve(
                label, curve.train, curve.evaluated, key=f"loss{stage.name}-{curve.key}"
            )
            weight = objective_note(weights.get(curve.key, {}))
            panels.append({"label": label, "weight": weight, "svg": Markup(svg)})
        if panels:
            trainings.append(
                {
                    "stage": stage,
                    "panels": panels,
                    "effort": effort(stage.result, stage.settings),
                    "projections": stage.result.get("projections", []),
                }
            )
    return trainings


def _softened(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
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
        (_excerpt(found["candidates"][i]), [values[place] for values in shares.values()])
        for place, i in enumerate(order)
    ]
    if has_rest:
        rows.append(("all others", [values[-1] for values in shares.values()]))
    return {
        "text": _excerpt(found["text"], 3 * EXCERPT),
        "panels": panels,
        "temperatures": list(shares),
        "rows": rows,
        "students": students,
        "has_rest": has_rest,
    }


def _examples(examples: Sequence[Mapping[str, Any]], most: int) -> dict[str, Any] | None:
    shown = list(examples)[:most]
    if not shown:
        return None
    models = [key for key in shown[0] if key not in ("query", "expected")]
    expects = any(example.get("expected") != example["query"] for example in shown)
    rows = [
        {
            "query": _excerpt(example["query"]),
            "expected": _excerpt(example.get("expected")),
            "answers": [_answer(example.get(name, {})) for name in models],
        }
        for example in shown
    ]
    return {"models": models, "expects": expects, "rows": rows}


def _answer(answer: Mapping[str, Any]) -> tuple[str, str]:
    if "rank" in answer:
        note = "right" if answer["rank"] == 1 else f"expected one at rank {answer['rank']}"
    else:
        note = f"p = {answer['p']:.2f}" if "p" in answer else ""
    return _excerpt(answer.get("top")), note


def _counts(results: Results) -> list[tuple[str, str]]:
    for stage in reversed(results.stages):
        told = stage.result.get("corpus") or stage.result.get("data") or {}
        counts = told.get("counts")
        if counts:
            return list(_flat(counts))
    return []


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(name, text) of each leaf of nested mappings; a list is one leaf."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            label = str(key).replace("_", " ")
            yield from _flat(item, f"{name}, {label}" if name else label)
    elif value not in (None, "", [], {}):
        yield name, _leaf(value)


def _leaf(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value)
    return ", ".join(map(_leaf, value)) if isinstance(value, list) else str(value)


def _command(results: Results) -> str:
    """The command that repeats the run: the recipe's name if that says it all, else its file."""
    name = str(results.recipe.get("name", ""))
    if name in recipe_files.shipped_recipes():
        with suppress(recipe_files.RecipeError):  # one that leaves the teacher to its user
            if recipe_files.dump_recipe(recipe_files.load_recipe(name)) == results.recipe_text:
                return f"potstill run {name}"
    return "potstill run recipe.yaml --output again"


def _excerpt(value: Any, most: int = EXCERPT) -> str:
    text = " ".join(str("" if value is None else value).split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


# --- templates ------------------------------------------------------------------------------------


def _html() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("potstill"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
