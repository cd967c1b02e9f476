"""Describe what a run's stages did: clauses of the report, the model card and the tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.reporting.results import Results, StageResult
from potstill.reporting.table import millions, score_cell

# Kind of a stage -> how the model that it writes was made.
MADE = {
    "finetune": "fine-tuned",
    "make_student": "before training",
    "distill": "distilled",
    "prune": "pruned",
    "trim_vocabulary": "vocabulary trimmed",
    "export": "exported",
    "quantize": "quantized",
}


def step_note(stage: StageResult) -> str:
    """Describe in a few words what a stage that made a model did."""
    result = stage.result
    match stage.kind:
        case "make_student":
            return f"{len(result['layers'])} of {result['teacher_layers']} layers"
        case "prune":
            return f"pruned to {kept_note(result)}"
        case "trim_vocabulary":
            return f"vocabulary: {vocabulary_note(result).partition(',' + ' ')[0]}"
        case "export":
            pruned = ", heads or units pruned layer by layer" if "pruned" in result else ""
            return f"ONNX, opset {result['opset']}{pruned}"
        case "quantize":
            return f"quantised, {stage.settings.get('method', result.get('method'))}"
        case other:
            return MADE[other]


def objective_note(objective: Mapping[str, Any]) -> str:
    """Return weight and temperature of an objective, as a recipe has them; empty if it has none."""
    parts = [f"weight {objective['weight']:g}"] if "weight" in objective else []
    if "temperature" in objective:
        final = objective.get("final_temperature")
        to = "" if final is None else f" to {final:g}, {objective['schedule']}"
        parts.append(f"T = {objective['temperature']:g}{to}")
    if objective.get("of") == "pooled":
        parts.append("of the pooled vectors")
    if "pairs" in objective:
        parts.append(f"of {', '.join(objective['pairs'])}")
    return ", ".join(parts)


def start_of(made: Mapping[str, Any]) -> str:
    """Describe in a sentence what a student started from."""
    count = f"{len(made['layers'])} of the teacher's {made['teacher_layers']} layers"
    if made.get("initialise") == "random":
        return f"As deep as {count}, with random weights."
    widths, before = made.get("widths"), made.get("teacher_widths")
    if widths and before and widths != before:
        return f"{count} were projected to its width."
    return f"{count} were copied."


def vocabulary_note(result: Mapping[str, Any]) -> str:
    """Describe in a clause what trimming a vocabulary did."""
    pieces = result["pieces"]
    return f"{pieces['after']:,} of {pieces['before']:,} word pieces kept, {_parameters(result)}"


def _parameters(result: Mapping[str, Any]) -> str:
    counts = result["parameters"]
    return f"{millions(counts['after'])} of {millions(counts['before'])} parameters"


def kept_note(result: Mapping[str, Any]) -> str:
    """Describe in a few words what pruning left."""
    named = {"layers": "layers", "ffn": "inner units of each layer", "width": "channels"}
    cuts = [(result[key], what) for key, what in named.items() if result.get(key)]
    parts = [f"{cut['after']:,} of {cut['before']:,} {what}" for cut, what in cuts]
    return ", ".join(parts[:-1]) + " and " * (len(parts) > 1) + parts[-1]


def pruning_note(result: Mapping[str, Any]) -> str:
    """Describe in a clause what pruning left and what that cost."""
    effect = result["effect"]
    before, now = (score_cell(effect[key]).text for key in ("before", "after"))
    cost = f"{effect['measure']} went from {before} to {now}"
    return f"{kept_note(result)} kept, {_parameters(result)}; before any training, {cost}"


def effort(result: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> str:
    """Return the steps, tokens and minutes of a training's result.

    Args:
        settings: the stage's, to tell of the weights that were kept; None: that is not told.
    """
    parts = [f"{result[key]:,} {key}" for key in ("steps", "tokens") if result.get(key)]
    parts += [f"{result['seconds'] / 60:.1f} minutes"] if result.get("seconds") else []
    parts += ["stopped early"] if result.get("stopped_early") else []
    best, kept = result.get("best"), (settings or {}).get("training", {}).get("keep")
    if best and kept == "best":
        parts.append(f"the best weights kept, of step {best['step']:,}")
    return ", ".join(parts)


def warnings_of(results: Results) -> list[str]:
    """Return the warnings of all stages, each once."""
    parts = [
        part
        for stage in results.stages
        for part in (stage.result, stage.result.get("corpus"), stage.result.get("data"))
    ]
    return list(dict.fromkeys(said for part in parts if part for said in part.get("warnings", [])))


def title_of(results: Results) -> str:
    """Return the title of a run whose report has no title of its own."""
    return str(results.recipe.get("name") or results.run.resolve().name)
