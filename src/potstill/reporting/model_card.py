"""Write the model card: README.md of a model folder, with front matter for the hub.

Names and texts from outside can carry HTML and Markdown, and the hub renders both: the template's
environment escapes every value that it prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from potstill.recipe import measuring
from potstill.reporting import pages
from potstill.reporting.metrics_json import Metrics, metrics_of
from potstill.reporting.phrases import (
    effort,
    objective_note,
    pruning_note,
    start_of,
    title_of,
    vocabulary_note,
    warnings_of,
)
from potstill.reporting.results import Results, read_results
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
        ValueError: A folder does not exist, no stage is finished, or a file is damaged.
    """
    if not model_folder.is_dir():
        raise ValueError(f"{model_folder}: the folder does not exist. Give the folder of a model.")
    results = read_results(run)
    card = _Card(results, metrics_of(results), settings, model_folder)
    # the escaping of HTML alone would let Markdown through
    body = pages.filled("card.md.j2", card.values(), finalize=escape_markdown)
    front = card.front_matter().to_yaml()
    write_text(model_folder / "README.md", f"---\n{front}\n---\n\n{body}")
    return model_folder / "README.md"


@dataclass(frozen=True)
class _Card:
    """Hold what a run reports about the model in a folder."""

    results: Results
    metrics: Metrics
    settings: measuring.Report
    folder: Path

    @property
    def title(self) -> str:
        return self.settings.title or title_of(self.results)

    @property
    def task(self) -> str:
        return str(self.results.recipe.get("task", "masked_lm"))

    @property
    def is_sentence_encoder(self) -> bool:
        return (self.folder / "modules.json").is_file()

    @property
    def sources(self) -> list[Mapping[str, Any]]:
        """List the sources of the text or the examples that models were trained on."""
        if data := self.results.recipe.get("data"):
            return [*data["train"], *(data.get("unlabeled", data.get("unlabelled")) or [])]
        return list((self.results.recipe.get("corpus") or {}).get("sources", []))

    def front_matter(self) -> ModelCardData:
        published = self.metrics["models"].get(str(self.results.published), {})
        named = [source["name"] for source in self.sources if source.get("kind") == "hub"]
        sources = list(dict.fromkeys(named))
        recipe = self.results.recipe.get("name", self.title)
        shown = [
            EvalResult(
                task_type=CARD_TASKS[key.partition(".")[0]],
                dataset_type=sources[0] if sources else "text",
                dataset_name=f"held-out part of the corpus of {recipe}",
                metric_type=key.partition(".")[2],
                metric_name=label_of(key),
                metric_value=value,
            )
            for key, value in flat_scores(published.get("scores", {})).items()
            if key.partition(".")[0] in CARD_TASKS and value is not None
        ]
        teacher = str(self.results.recipe.get("teacher", {}).get("model", ""))
        base = teacher if _is_on_the_hub(teacher) else None  # a path says nothing to others
        library, tag = "transformers", CARD_TASKS.get(self.task, "fill-mask")
        tags = ["potstill", "knowledge-distillation"]
        if self.is_sentence_encoder:
            library, tag = "sentence-transformers", "sentence-similarity"
            tags.append("feature-extraction")
        return ModelCardData(
            language=self.settings.language,
            license=self.settings.license,
            base_model=base,
            # The hub knows no relation for distillation; its own distilled models say finetune.
            base_model_relation="finetune" if base else None,
            library_name=library,
            pipeline_tag=tag,
            tags=tags,
            datasets=sources or None,
            metrics=list(dict.fromkeys(result.metric_type for result in shown)) or None,
            model_name=" ".join(self.title.split()),
            eval_results=shown or None,
        )

    def values(self) -> dict[str, Any]:
        """Return the values that the template shows."""
        results, metrics = self.results, self.metrics
        shown = [results.baseline, results.published, *results.graphs]
        columns = [name for name in dict.fromkeys(shown) if name in results.names]
        made = next((s.result for s in results.lineage[::-1] if s.kind == "make_student"), None)
        trained = [s for s in results.of("distill") if s.writes == results.student]
        trimmed = [s for s in results.of("trim_vocabulary") if s.writes == results.published]
        rows = comparison_rows(results, metrics)
        names = [name for source in self.sources for name in _source_names(source)]
        return {
            "title": self.title,
            "verdict": verdict(results, metrics, results.published),
            "teacher": " and ".join(_teachers(results)),
            "corpus": list(dict.fromkeys(names)),
            "made": made,
            "start": start_of(made) if made else "",
            "chosen": made.get("chosen") if made else "",
            "pruned": [pruning_note(s.result) for s in results.lineage if s.kind == "prune"],
            "vocabularies": [vocabulary_note(stage.result) for stage in trimmed],
            "trained": [
                {
                    "objectives": [_objective(o) for o in stage.result.get("objectives", [])],
                    "effort": effort(stage.result),
                }
                for stage in trained
            ],
            "columns": columns,
            "rows": [row for row in rows if any(name in row.cells for name in columns)],
            "steps": steps_of(results, metrics),
            "suite": None if results.suite is None else suite_rows(results.suite),
            "sentence": self.is_sentence_encoder,
            "task": self.task,
            "pipeline": CARD_TASKS.get(self.task),
            "pairs": len((results.recipe.get("data") or {}).get("text", [])) == 2,
            "data": bool(results.recipe.get("data")),
            **_modules(self.folder),
            "graphs": [
                {**found, "file": f"{ONNX}/{found['files'][0]}"}
                for found in results.written_by("export").values()
                if (self.folder / ONNX / found["files"][0]).is_file()
            ],
            "noise": results.benchmark.get("noise", {}).get("message"),
            "warnings": [*map(pages.sentence, results.findings), *warnings_of(results)],
            "language": self.settings.language,
            "license": self.settings.license,
        }


def _modules(folder: Path) -> dict[str, Any]:
    """Read how a sentence encoder pools, `mean` or `cls`, and whether it normalizes."""
    modules, pooling = folder / "modules.json", folder / "1_Pooling" / "config.json"
    mode = None
    if modules.is_file() and pooling.is_file():
        found = read_json(pooling)
        flags = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
        modes = [found.get("pooling_mode"), *(m for key, m in flags.items() if found.get(key))]
        mode = next((mode for mode in modes if mode in ("mean", "cls")), None)
    normalizes = modules.is_file() and "Normalize" in modules.read_text("utf-8")
    return {"pooling": mode, "normalize": normalizes}


def _is_on_the_hub(name: str) -> bool:
    return HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def _teachers(results: Results) -> list[str]:
    """List what the student was distilled from: the teacher, and further ones that it followed."""
    given = {"teacher": results.recipe.get("teacher", {}), **results.recipe.get("teachers", {})}
    names = ["teacher"]
    for stage in results.of("distill"):
        if stage.writes == results.student:
            followed = stage.settings.get("teacher", "teacher")
            entries = [{"model": followed}] if isinstance(followed, str) else followed
            names += [entry["model"] for entry in entries if entry["model"] in given]
    return [_public_name(str(given[name].get("model", name))) for name in dict.fromkeys(names)]


def _source_names(source: Mapping[str, Any]) -> Iterator[str]:
    several = source.get("kind") == "files"
    yield from map(
        _public_name, source["paths"] if several else [str(source.get("name") or source["path"])]
    )


def _public_name(spec: str) -> str:
    """Name a teacher or a text without a folder of this machine."""
    if spec.startswith("package:"):
        return f"package {PurePosixPath(spec.removeprefix('package:')).parts[0]}"
    return spec if _is_on_the_hub(spec) else Path(spec).name


def _objective(objective: Mapping[str, Any]) -> str:
    name = label_of(objective["kind"]).lower()
    weight = objective_note(objective)
    return f"{name} ({weight})" if weight else name


def escape_markdown(value: Any) -> str:
    """Return a value as one line of Markdown text: no markup, no HTML, no end of a table's cell."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~!])", r"\\\1", text)
