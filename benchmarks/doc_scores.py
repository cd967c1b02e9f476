"""Tables of what students score: on tasks with labels, on public suites."""

from __future__ import annotations

from typing import Any

from doc_tables import (
    RESULTS,
    difference,
    kept_share,
    load,
    machine,
    markdown,
    over_seeds,
    spread,
)

from potstill.reporting.suites import shown_metrics
from potstill.tasks.score_names import metric_name

TASKS = {
    "sst2_few": "SST-2, 1,000 labels, accuracy",
    "sst2_many": "SST-2, 32,000 labels, accuracy",
    "cola": "CoLA, Matthews' correlation",
    "rte": "RTE, accuracy",
    "bbc": "BBC News, accuracy",
    "wnut": "WNUT 17, F1 of entities",
    "squad": "SQuAD 2.0, F1 of words",
    "squad_answered": "the same, answered questions alone",
}


def reached() -> str:
    """The README's rows: what the recipes made of all-MiniLM-L6-v2 beyond the quickstart."""
    heads = ("recipe", "times smaller", "times as fast, 16 tokens", "128 tokens", "kept")
    rows = [["", *heads]]
    steps = (
        ("compress_embeddings", "sentence encoder, MRR", "embedding-compact", "retrieval.mrr"),
        ("compress_sst2", "SST-2, accuracy", "classification-compact", "classification.accuracy"),
    )
    for name, label, recipe, key in steps:
        result = load(name)
        models, ratios = result["metrics"]["models"], result["ratios"]["quantized"]["speedup"]
        smaller = models["teacher"]["weight_bytes"] / models["quantized"]["weight_bytes"]
        kept = result["metrics"]["comparisons"]["quantized"]
        speeds = [f"{ratios[length]['median']:.1f}" for length in ("16", "128")]
        rows.append([label, f"`{recipe}`", f"{smaller:.1f}", *speeds, kept_share(kept, key)])
    result = load("sst2_few")
    own = result["comparisons"]["student"]
    models = result["models"]
    smaller = models["teacher"]["weight_bytes"] / models["student"]["weight_bytes"]
    speeds = [f"{own['speedup'][length]:.1f}" for length in ("16", "128")]
    plain = result["comparisons"]["plain"]["retention_by_score"]["classification.accuracy"]
    kept = kept_share(own, "classification.accuracy")
    label = "SST-2 with 1,000 labels, accuracy"
    without = f"{kept}; without a teacher {plain:.1%}"
    rows.append([label, "`classification`", f"{smaller:.1f}", *speeds, without])
    return markdown(rows) + f"\nIn parentheses: 95% intervals. {machine(result)}, 1 thread.\n"


def tasks() -> str:
    """What benchmarks/tasks.py wrote: a row a task."""
    heads = ("seeds", "teacher", "plain twin", "student", "kept", "less the twin", "best trivial")
    rows = [["", *heads]]
    where = ""
    for name, label in TASKS.items():
        if not (RESULTS / f"{name}.json").is_file():
            continue
        result = load(name)
        evaluation, where = result["evaluation"], machine(result)
        task, metric = evaluation["task"], evaluation["metric"]
        key = f"{task}.{metric}"
        scores = {model: result["models"][model]["scores"][task] for model in result["models"]}

        def cell(model: str, scores: Any = scores, metric: str = metric) -> str:
            return over_seeds(scores[model][metric], scores[model].get("seeds", []))

        kept = "not clearly above chance"
        if key in evaluation["retention"].get("student", {}):
            ends = evaluation["intervals"]["student"][key]
            kept = spread(evaluation["retention"]["student"][key], *ends, ".1%")
        told = evaluation["differences"]["plain"]
        less = difference(told["difference"], *told["interval"])
        trivial = max(value[task][metric] for value in evaluation["references"].values())
        seeds = str(len(scores["student"].get("seeds", [0])))
        cells = [cell(model) for model in ("teacher", "plain", "student")]
        rows.append([label, seeds, *cells, kept, less, f"{trivial:.3f}"])
    return markdown(rows) + (
        f"\n{where}. In parentheses: of scores the least and the greatest of the seeds; else "
        "the 95% bootstrap interval over the test examples. Bold: an interval without 0.\n"
    )


def glue() -> str:
    """What `potstill evaluate --suite glue` wrote as suite.json: a row a score."""
    result = load("glue")
    models, kept, told = result["models"], result["retention"], result["settings"]["tasks"]
    rows = [["times 100", "examples, trained on", "scored", *models, *(f"{n}, kept" for n in kept)]]
    for task, about in result["tasks"].items():
        for metric in shown_metrics(about):
            part = metric.removeprefix("accuracy") if task == "mnli" and metric != "score" else ""
            counts = about["examples"]
            sizes = [counts["train"], counts.get(f"scored{part}", "")]
            found = [model["tasks"][task][metric] for model in models.values()]
            shares = [own["tasks"][task][metric] for own in kept.values()]
            small = ", too small a set" if about["small"] else ""
            shown = ["none" if share is None else f"{share:.1%}{small}" for share in shares]
            label = f"{about['title']}, {metric_name(metric)}"
            rows.append([label, *map(str, sizes), *map(_over_seeds, found), *shown])
    for key, label in (("all", "average"), ("without_wnli", "average without WNLI")):
        averages = [f"{100 * model['average'][key]:.1f}" for model in models.values()]
        shares = [own["overall"][key] for own in kept.values()]
        shown = ["none" if share is None else f"{share:.1%}" for share in shares]
        rows.append([label, "", "", *averages, *shown])
    rates = sorted({f"{task['training']['learning_rate']:g}" for task in told.values()})
    count = len(result["settings"]["seeds"])
    how = "One seed" if count == 1 else f"Medians of {count} seeds"
    partial = ""
    if result["partial"]:
        partial = f"**Partial, not the whole suite**: {'; '.join(result['partial_reasons'])}. "
    return markdown(rows) + (
        f"\n{partial}{how}, in parentheses the least and the greatest; learning rate "
        f"{', '.join(rates)}; {machine(result)}.\n"
    )


def _over_seeds(score: dict[str, Any]) -> str:
    times_100 = [100 * value for value in score["all"]]
    return over_seeds(100 * score["median"], times_100, ".1f")
