"""Write the report of a run: metrics.json and report.html, one file that opens offline.

Whatever comes from outside (names, texts, labels, versions) is escaped by the page's template.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from potstill.recipe import files as recipe_files
from potstill.recipe import measuring
from potstill.reporting import figures, panels
from potstill.reporting.losses import loss_curves
from potstill.reporting.metrics_json import Metrics, metrics_of
from potstill.reporting.pages import flat, render
from potstill.reporting.phrases import (
    effort,
    objective_note,
    pruning_note,
    start_of,
    title_of,
    vocabulary_note,
    warnings_of,
)
from potstill.reporting.results import Results, StageResult, read_results, said
from potstill.reporting.steps import steps_of
from potstill.reporting.table import columns_of, comparison_rows
from potstill.reporting.verdict import verdict
from potstill.storage.files import write_json, write_text
from potstill.tasks.score_names import label_of


def write_report(run: Path, settings: measuring.Report) -> Path:
    """Write metrics.json and report.html into a run folder; what a run has not done is left out.

    Returns:
        The path of report.html.

    Raises:
        ValueError: The folder has no finished stage, a file is damaged, or matplotlib is missing.
    """
    figures.require_matplotlib()
    results = read_results(run)
    metrics = metrics_of(results)
    page = render("report.html.j2", _page(results, metrics, settings))
    write_json(run / "metrics.json", metrics)
    write_text(run / "report.html", page)
    return run / "report.html"


# --- the page -------------------------------------------------------------------------------------


def _page(results: Results, metrics: Metrics, settings: measuring.Report) -> dict[str, Any]:
    rows = comparison_rows(results, metrics)
    return {
        "results": results,
        "title": settings.title or title_of(results),
        "description": results.recipe.get("description", ""),
        "text_language": settings.language,
        "verdict": verdict(results, metrics),
        "shipped": _shipped(results, metrics),
        "columns": columns_of(results),
        "groups": {group: list(rows) for group, rows in groupby(rows, key=lambda row: row.group)},
        "steps": steps_of(results, metrics),
        "kept": panels.kept(results, metrics),
        "whose": f"{said(results.baseline)}'s",
        "suite": panels.suite(results),
        "pareto": panels.pareto(results, metrics),
        "seeds": panels.seeds(results, metrics),
        "pruned": [_pruned(stage) for stage in results.of("prune")],
        "vocabularies": results.of("trim_vocabulary"),
        "vocabulary_note": vocabulary_note,
        "layer_maps": _layer_maps(results),
        "curves": _curves(results),
        "softened": panels.softened(results.evaluation.get("softened")),
        "confusions": panels.confusions(results),
        "examples": _examples(results, settings.examples),
        "counts": _counts(results),
        "warnings": warnings_of(results),
        "noise": results.benchmark.get("noise", {}).get("message"),
        "environment": list(flat(results.environment)),
        "command": _command(results),
    }


def _shipped(results: Results, metrics: Metrics) -> str | None:
    """Return a sentence about the last artifact made of the student, if that is another model."""
    scored = "scores" in metrics["models"].get(str(results.last), {})
    return verdict(results, metrics, results.last) if scored else None


def _pruned(stage: StageResult) -> dict[str, Any]:
    """Return what a pruning kept, and the share of each layer's importance."""
    layers, ffn = stage.result.get("layers"), stage.result.get("ffn")
    units = ffn["importance_kept"] if ffn else []
    numbers = layers["kept"] if layers else range(len(units))
    columns: dict[str, dict[int, str]] = {}
    if layers:
        shares = dict(enumerate(layers["importance"]))
        told = {number: f"{share:.1%}" for number, share in shares.items()}
        columns["Share of the importance of all layers"] = told
        columns["Kept"] = {number: "yes" if number in numbers else "no" for number in shares}
    if ffn:
        pairs = zip(numbers, units, strict=False)
        columns["Importance of the units kept"] = {n: f"{share:.1%}" for n, share in pairs}
    every = sorted({number for column in columns.values() for number in column})
    return {
        "name": stage.writes,
        "result": stage.result,
        "sentence": pruning_note(stage.result),
        "columns": list(columns),
        "rows": [(n, [column.get(n, "") for column in columns.values()]) for n in every],
    }


def _layer_maps(results: Results) -> list[dict[str, Any]]:
    """Draw each different layer map once, with the names of the students that have it."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for stage in results.of("make_student"):
        layers, depth = stage.result["layers"], stage.result["teacher_layers"]
        start = start_of(stage.result)
        told = (stage.result.get(key) for key in ("chosen", "from_type", "to_type", "rule"))
        key = (depth, *layers, start, *told)
        new = {"students": [], "result": {"chosen": "", **stage.result}, "start": start}
        entry = found.setdefault(key, new)
        entry["students"].append(stage.writes)
        entry["svg"] = figures.layer_map(layers, depth, key=f"layers{len(found)}")
    return list(found.values())


def _curves(results: Results) -> list[dict[str, Any]]:
    """Draw the loss curves of each training that logged some."""
    trainings = []
    for stage in results.of("distill", "finetune"):
        weights = {o["kind"]: o for o in stage.result.get("objectives", [])}
        curves = []
        for curve in loss_curves(stage):
            label, key = label_of(curve.key), f"loss{stage.name}-{curve.key}"
            svg = figures.loss_curve(label, curve.train, curve.evaluated, key=key)
            weight = objective_note(weights.get(curve.key, {}))
            curves.append({"label": label, "weight": weight, "svg": svg})
        told = {"stage": stage, "panels": curves, "effort": effort(stage.result, stage.settings)}
        trainings.append({**told, "projections": stage.result.get("projections", [])})
    return [training for training in trainings if training["panels"]]


ORDERS = {
    "sentence_embedding": "the largest difference of ranks first",
    "regression": "the largest difference first",
    "sentence_similarity": "the largest difference first",
}


def _examples(results: Results, most: int) -> dict[str, Any] | None:
    shown = list(results.evaluation.get("examples") or [])[:most]
    if not shown:
        return None
    models = [key for key in shown[0] if key not in ("query", "expected")]
    rows = [
        {
            "query": example["query"],
            "expected": example.get("expected"),
            "answers": [_answer(example.get(name, {})) for name in models],
        }
        for example in shown
    ]
    expects = any(row["expected"] != row["query"] for row in rows)
    order = ORDERS.get(results.evaluation["task"], "those of which both are surest first")
    return {"models": models, "expects": expects, "rows": rows, "order": order}


def _answer(answer: Mapping[str, Any]) -> tuple[Any, str]:
    if "rank" in answer:
        note = "right" if answer["rank"] == 1 else f"expected one at rank {answer['rank']}"
    else:
        note = f"p = {answer['p']:.2f}" if "p" in answer else ""
    return answer.get("top"), note


def _counts(results: Results) -> list[tuple[str, str]]:
    for stage in reversed(results.stages):
        told = stage.result.get("corpus") or stage.result.get("data") or {}
        if told.get("counts"):
            return list(flat(told["counts"]))
    return []


def _command(results: Results) -> str:
    """Return the command that repeats the run, by the recipe's name where that suffices."""
    name = str(results.recipe.get("name", ""))
    if name in recipe_files.shipped_recipes():
        with suppress(recipe_files.RecipeError):  # one that leaves the teacher to its user
            if recipe_files.dump_recipe(recipe_files.load_recipe(name)) == results.recipe_text:
                return f"potstill run {name}"
    return "potstill run recipe.yaml --output again"
