"""The model card: README.md of a model folder, front matter for the hub and a page for people.

Names and texts from outside can carry HTML and Markdown, and the hub renders both: the template's
environment escapes every value that it prints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from potstill.recipe import measuring
from potstill.reporting.metrics_json import metrics_of
from potstill.reporting.phrases import (
    effort,
    findings_of,
    objective_note,
    pruning_note,
    start_of,
    title_of,
    vocabulary_note,
    warnings_of,
)
from potstill.reporting.results import Results, StageResult, read_results
from potstill.reporting.steps import steps_of
from potstill.reporting.suites import suite_rows
from potstill.reporting.table import comparison_rows, flat_scores
from potstill.reporting.verdict import verdict
from potstill.storage.files import read_json, write_text
from potstill.storage.onnx_files import ONNX
from potstill.tasks.score_names import CARD_TASKS, label_of

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def write_card(run: Path, model_folder: Path, settings: measuring.Report) -> Path:
    """Write README.md, the model card of what a run publishes, into a model folder.

    Returns:
        The path of README.md.

    Raises:
        ValueError: no run folder, no finished stage, a broken file, or no such model folder.
    """
    if not model_folder.is_dir():
        raise ValueError(f"{model_folder} is not a model folder: the model card has no place there")
    results = read_results(run)
    metrics = metrics_of(results)
    sentence = (model_folder / "modules.json").is_file()
    front = _front_matter(results, metrics, settings, sentence)
    body = (
        _markdown()
        .get_template("card.md.j2")
        .render(_card(results, metrics, settings, model_folder, sentence))
    )
    write_text(model_folder / "README.md", f"---\n{front.to_yaml()}\n---\n\n{body}")
    return model_folder / "README.md"


def _front_matter(
    results: Results, metrics: Mapping[str, Any], settings: measuring.Report, sentence: bool
) -> ModelCardData:
    tag = "sentence-similarity" if sentence else CARD_TASKS.get(_task(results), "fill-mask")
    scores = flat_scores(metrics["models"].get(results.published, {}).get("scores", {}))
    sources = _hub_sources(results)
    name = settings.title or title_of(results)
    shown = [
        EvalResult(
            task_type=CARD_TASKS[key.partition(".")[0]],
            dataset_type=sources[0] if sources else "text",
            dataset_name=f"held-out part of the corpus of {results.recipe.get('name', name)}",
            metric_type=key.partition(".")[2],
            metric_name=label_of(key),
            metric_value=value,
        )
        for key, value in scores.items()
        if key.partition(".")[0] in CARD_TASKS and value is not None
    ]
    base = _hub_teacher(results)
    return ModelCardData(
        language=settings.language,
        license=settings.license,
        base_model=base,
        # The hub knows no relation for distillation; its own distilled models say finetune.
        base_model_relation="finetune" if base else None,
        library_name="sentence-transformers" if sentence else "transformers",
        pipeline_tag=tag,
        tags=["potstill", "knowledge-distillation", *(["feature-extraction"] if sentence else [])],
        datasets=sources or None,
        metrics=list(dict.fromkeys(result.metric_type for result in shown)) or None,
        model_name=" ".join(name.split()),
        eval_results=shown or None,
    )


def _task(results: Results) -> str:
    return str(results.recipe.get("task", "masked_lm"))


def _hub_teacher(results: Results) -> str | None:
    """The teacher's name if it is one of the hub's; a path would say nothing to others."""
    name = str(results.recipe.get("teacher", {}).get("model", ""))
    return name if HUB_NAME.fullmatch(name) and not Path(name).exists() else None


def _teachers(results: Results) -> list[str]:
    """What the student was distilled from: the teacher, and further ones that it followed."""
    given = {"teacher": results.recipe.get("teacher", {}), **results.recipe.get("teachers", {})}
    names = ["teacher"]
    for stage in results.stages:
        if stage.kind == "distill" and stage.writes == results.student:
            followed = stage.settings.get("teacher", "teacher")
            entries = [{"model": followed}] if isinstance(followed, str) else followed
            names += [entry["model"] for entry in entries if entry["model"] in given]
    models = [str(given[name].get("model", name)) for name in dict.fromkeys(names)]
    return [_public_name(model) for model in models]


def _hub_sources(results: Results) -> list[str]:
    names = [source["name"] for source in _sources(results) if source.get("kind") == "hub"]
    return list(dict.fromkeys(names))


def _sources(results: Results) -> list[Mapping[str, Any]]:
    """Where the text or the examples came from that models were trained on."""
    if results.recipe.get("data"):
        data = results.recipe["data"]
        return [*data["train"], *(data.get("unlabeled", data.get("unlabelled")) or [])]
    return list((results.recipe.get("corpus") or {}).get("sources", []))


def _public_name(spec: str) -> str:
    """A teacher or a text as a stranger may know it: no folder of this machine."""
    if spec.startswith("package:"):
        return f"package {PurePosixPath(spec.removeprefix('package:')).parts[0]}"
    return spec if HUB_NAME.fullmatch(spec) and not Path(spec).exists() else Path(spec).name


def _card(
    results: Results,
    metrics: Mapping[str, Any],
    settings: measuring.Report,
    model_folder: Path,
    sentence: bool,
) -> dict[str, Any]:
    student = results.student
    shown = [results.baseline, results.published, *results.exported, *results.quantized]
    columns = [name for name in dict.fromkeys(shown) if name in results.names]
    made = _made(results)
    trained = [
        {
            "objectives": [_objective(o) for o in stage.result.get("objectives", [])],
            "effort": effort(stage.result),
        }
        for stage in results.stages
        if stage.kind == "distill" and stage.writes == student
    ]
    rows = [
        row for row in comparison_rows(results, metrics) if any(c in row.cells for c in columns)
    ]
    corpus = _sources(results)
    pairs = len((results.recipe.get("data") or {}).get("text", [])) == 2
    return {
        "title": settings.title or title_of(results),
        "verdict": verdict(results, metrics, results.published),
        "teacher": " and ".join(_teachers(results)),
        "corpus": list(dict.fromkeys(name for source in corpus for name in _source_names(source))),
        "made": made,
        "start": start_of(made) if made else "",
        "pruned": [pruning_note(stage.result) for stage in _pruned(results)],
        "vocabularies": [
            vocabulary_note(stage.result)
            for stage in results.stages
            if stage.kind == "trim_vocabulary" and stage.writes == results.published
        ],
        "chosen": made.get("chosen") if made else "",
        "trained": trained,
        "columns": columns,
        "rows": rows,
        "steps": steps_of(results, metrics),
        "suite": None if results.suite is None else suite_rows(results.suite),
        "sentence": sentence,
        "task": _task(results),
        "pipeline": CARD_TASKS.get(_task(results)),
        "pairs": pairs,
        "data": bool(results.recipe.get("data")),
        "pooling": _pooling(model_folder) if sentence else None,
        "normalize": sentence and "Normalize" in (model_folder / "modules.json").read_text("utf-8"),
        "graphs": [
            {**found, "file": f"{ONNX}/{found['files'][0]}"}
            for found in results.exported.values()
            if (model_folder / ONNX / found["files"][0]).is_file()
        ],
        "noise": results.benchmark.get("noise", {}).get("message"),
        "warnings": [*findings_of(results), *warnings_of(results)],
        "language": settings.language,
        "license": settings.license,
    }


def _made(results: Results) -> dict[str, Any] | None:
    """How the student was made that the published model came from; None if it was given."""
    name = results.student
    for stage in reversed(results.stages):
        if stage.writes == name:
            if stage.kind == "make_student":
                return stage.result
            name = stage.settings.get("model", name)
    return None


def _pruned(results: Results) -> list[StageResult]:
    """The prunings that the published model came through, in order."""
    name, found = results.published, list[StageResult]()
    for stage in reversed(results.stages):
        if stage.writes == name:
            found += [stage] if stage.kind == "prune" else []
            name = stage.settings.get("model", stage.settings.get("teacher", name))
    return found[::-1]


def _source_names(source: Mapping[str, Any]) -> list[str]:
    if source.get("kind") == "files":
        return [_public_name(path) for path in source["paths"]]
    return [_public_name(str(source.get("name") or source.get("path")))]


def _objective(objective: Mapping[str, Any]) -> str:
    name = label_of(objective["kind"]).lower()
    weight = objective_note(objective)
    return f"{name} ({weight})" if weight else name


def _pooling(folder: Path) -> str | None:
    """`mean` or `cls` where a sentence encoder's folder says so, for the card's plain example."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    settings = read_json(path)
    mode = settings.get("pooling_mode")
    if mode in ("mean", "cls"):
        return str(mode)
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    return next((name for key, name in modes.items() if settings.get(key)), None)


def _markdown() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("potstill.reporting"),
        autoescape=False,  # the escaping of HTML alone would let Markdown through
        finalize=escape_markdown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def escape_markdown(value: Any) -> str:
    """A value as one line of Markdown text: no markup, no HTML, no end of a table's cell."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~!])", r"\\\1", text)
