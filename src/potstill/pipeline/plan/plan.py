"""Show what a run would do and cost, without creating or changing anything on disk.

Estimates come from a sample of the text, the teacher's config (no weights are read) and a matrix
product timed here.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from rich.filesize import decimal

from potstill.data import make_masker
from potstill.models import LoadedModel, load_config
from potstill.models.devices import autocast_dtype
from potstill.pipeline.fingerprints import (
    given_digests,
    is_current,
    stage_fingerprints,
    written_digests,
)
from potstill.pipeline.inputs import check_inputs, given_folders
from potstill.pipeline.outlook import Outline
from potstill.pipeline.plan.cost import Cost, cost_of, matmul_flops
from potstill.pipeline.plan.text import Text, sample_text, text_of_examples
from potstill.pipeline.rehearsal import rehearse
from potstill.pipeline.replaced import begun_as
from potstill.pipeline.stages.report import has_results
from potstill.recipe import (
    Distill,
    Export,
    Finetune,
    Prune,
    Recipe,
    Stage,
    Task,
)
from potstill.storage import RunFolder, cache_folder
from potstill.tasks import read_for, tokenize_task

LEARNING = (Finetune, Distill, Prune)  # the stages that read text for more than scores
SHOWN_TEXTS, SHOWN_TOKENS = 4, 40


def plan_run(recipe: Recipe, output: Path | None) -> list[str]:
    """Write the plan of a run: stages, models, text, the cost of each training, one decoded batch.

    Args:
        recipe: The recipe that would be run.
        output: The run folder; None means runs/<name of the recipe>.

    Returns:
        Lines of plain text.

    Raises:
        ValueError: A run of the recipe would fail, or a hub teacher is not in the cache.
    """
    folder = output if output is not None else Path("runs") / recipe.name
    check_inputs(recipe, folder)
    run = RunFolder(folder)
    given = given_folders(recipe, fetch=False)
    outlines = rehearse(recipe, given)
    # the model whose tokens the text is counted in; none where no stage learns from text
    tokenizer = next((o.model for o in outlines if isinstance(o.stage, LEARNING)), None)
    text = _text(recipe, tokenizer, given) if tokenizer else None
    stages = f"{len(outlines)} stage{'s' if len(outlines) > 1 else ''}"
    lines = [f"{recipe.name}: {stages} in {folder}", "", "Stages"]
    states = _states(recipe, run, given)
    lines += _stage_lines(recipe, states)
    lines += ["", "Models", *_model_lines(outlines)]
    if text is not None and tokenizer is not None:
        lines += ["", "Text", *_text_lines(text)]
        lines += ["", "Training", *_training_lines(recipe, outlines, states, text, folder)]
        lines += ["", "One batch", *_batch_lines(recipe, outlines, text)]
    return lines


def _text(recipe: Recipe, tokenizer: LoadedModel, given: Mapping[str, Path]) -> Text:
    if recipe.corpus is not None:
        return sample_text(recipe.corpus, tokenizer)
    assert recipe.data is not None
    teacher = load_config(given["teacher"])
    rows = read_for(recipe.task, recipe.data, teacher, recipe.seed)
    taught = any(isinstance(stage, Distill) for stage in recipe.stages)
    return text_of_examples(tokenize_task(rows, tokenizer.tokenizer), taught)


# --- stages ---------------------------------------------------------------------------------------


def _stage_lines(recipe: Recipe, states: Sequence[str]) -> list[str]:
    rows = [
        (f"{number} {stage.kind}", _reads_and_writes(stage), state)
        for number, (stage, state) in enumerate(zip(recipe.stages, states, strict=True), start=1)
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return [f"  {a:{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in rows]


def _reads_and_writes(stage: Stage) -> str:
    if stage.reports:
        return "all results -> report.html, metrics.json, model card"
    reads = "all models" if stage.reads_every_model else ", ".join(stage.reads)
    writes = ", ".join(stage.written) or "scores"
    return f"{reads} -> {'timings' if stage.kind == 'benchmark' else writes}"


_DONE = "done, will be skipped"


def _states(recipe: Recipe, run: RunFolder, given: Mapping[str, Path]) -> list[str]:
    """Report for each stage whether a run would skip, resume or do it."""
    folders = [run.stage_folder(n, stage.kind) for n, stage in enumerate(recipe.stages, start=1)]
    if not any(folder.is_dir() for folder in folders):
        return ["to do"] * len(folders)  # and no need to read all of the text for fingerprints
    states, ran = [], False
    digests = given_digests(given)
    fingerprints = stage_fingerprints(recipe, given)
    for stage, folder, fingerprint in zip(recipe.stages, folders, fingerprints, strict=True):
        done = run.done(folder)
        reads = {name: digests.get(name, "to be made") for name in stage.reads_among(digests)}
        if done is None:
            state = _unfinished(run, folder, fingerprint)
        elif done["fingerprint"] != fingerprint:
            state = "to do again: the recipe, the text or the teacher changed"
        elif not is_current(done, fingerprint, reads):
            state = "to do again, unless its input models stay the same"
        elif stage.reports and (ran or not has_results(run.path)):
            state = "to do again: it reports the stages before it"
        else:
            state = _DONE
        ran = ran or state != _DONE
        states.append(state)
        made = written_digests(done) if done is not None else {}
        digests |= dict.fromkeys(stage.written, "to be made") | made
    return states


def _unfinished(run: RunFolder, folder: Path, fingerprint: str) -> str:
    if folder in run.damage:
        return f"to do again: {run.damage[folder]}"
    if begun_as(folder) == fingerprint and any((folder / "checkpoints").glob("step-*")):
        return "begun, resumes from its checkpoint"
    return "to do"


def _model_lines(outlines: Sequence[Outline]) -> list[str]:
    found: dict[str, str] = {}
    for outline in outlines:
        stage, model = outline.stage, outline.model
        names = stage.reads
        if isinstance(stage, Distill):
            names = [teacher.model for teacher in stage.teachers]
        for name, teacher in zip(names, outline.teachers, strict=False):  # some have none
            found.setdefault(name, _shape(teacher))
        if model is not None:
            if isinstance(stage, Finetune):
                found.setdefault(stage.model, _shape(model))
            family = model.model.config.model_type
            shape = f"{family}, {outline.why}" if outline.why else _shape(model)
            found |= dict.fromkeys(stage.written, shape)
    width = max((len(name) for name in found), default=0)
    return [f"  {name:{width}}  {shape}" for name, shape in found.items()] or ["  unchanged"]


def _shape(loaded: LoadedModel) -> str:
    config = loaded.model.config
    return (
        f"{config.model_type}, {config.num_hidden_layers} layers, "
        f"hidden size {config.hidden_size}, {_count(loaded.model.num_parameters())} parameters"
    )


# --- text -----------------------------------------------------------------------------------------


def _text_lines(text: Text) -> list[str]:
    about, source = ("", "all") if text.whole else ("about ", "from a sample of")
    if text.per_epoch is None:
        epoch = (
            f"not known, because {', '.join(text.unsized)} has no known size; about "
            f"{text.mean:.0f} tokens per sequence (from a sample of {text.records} records)"
        )
    else:
        epoch = (
            f"{about}{_count(text.per_epoch)} sequences, {about}"
            f"{_count(text.per_epoch * text.mean)} tokens ({source} {text.records} records)"
        )
    lines = [f"  epoch: {epoch}"]
    if text.share is not None:
        cached = sum(len(ids) for ids in text.sequences) / text.share * 2
        lines.append(
            f"  tokenization, once: about {_duration(text.seconds / text.share)}, then "
            f"{_bytes(cached)} in {cache_folder()}"
        )
    return lines


# --- cost -----------------------------------------------------------------------------------------


def _training_lines(
    recipe: Recipe, outlines: Sequence[Outline], states: Sequence[str], text: Text, folder: Path
) -> list[str]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    lines, costs = [], []
    for number, (outline, state) in enumerate(zip(outlines, states, strict=True), start=1):
        stage = outline.stage
        if not isinstance(stage, LEARNING):
            continue
        leaves = [f"    leaves  {outline.why}"] if isinstance(stage, Prune) else []
        if state == _DONE:
            lines.append(f"  {number} {stage.kind}: done")
        elif isinstance(stage, Prune) and stage.importance == "magnitude":
            lines += [f"  {number} prune: by the size of weights, without text", *leaves]
        else:
            precision = "fp32" if isinstance(stage, Prune) else stage.training.precision
            dtype = autocast_dtype(precision, device) or torch.float32
            cost = cost_of(outline, text, matmul_flops(device, dtype))
            costs.append(cost)
            amount = _amount(stage, cost, text)
            lines += [f"  {number} {stage.kind}: {amount}", *leaves, *_cost_lines(cost)]
    return lines + (_totals(outlines, costs, folder, device) if costs else [])


def _amount(stage: Stage, cost: Cost, text: Text) -> str:
    if cost.steps is None or cost.tokens is None:
        return "steps not known (set max_steps or max_tokens to limit them)"
    if isinstance(stage, Prune):
        return f"gradients of at most {stage.texts:,} texts, about {_count(cost.tokens)} tokens"
    most = "at most " if text.per_epoch is None else "" if text.whole else "about "
    often = f"{cost.trainings} times " if cost.trainings > 1 else ""
    return f"{often}{most}{cost.steps:,} steps, {most}{_count(cost.tokens)} tokens"


def _cost_lines(cost: Cost) -> list[str]:
    speed = f"{cost.tokens_per_second:,.0f} tokens/s, from a timed matrix product"
    took = "not known" if cost.seconds is None else f"about {_duration(cost.seconds)}"
    if cost.asking:
        speed += f"; {_duration(cost.asking)} of it for the teacher's outputs, once per example"
    parts = ", ".join(f"{name} {_bytes(value)}" for name, value in cost.memory.items() if value)
    disk = f"    disk    about {_bytes(cost.checkpoints)} of checkpoints until the stage is done"
    return [
        f"    time    {took} ({speed})",
        f"    memory  about {_bytes(sum(cost.memory.values()))}: {parts}",
        *([disk] if cost.checkpoints else []),
    ]


def _totals(
    outlines: Sequence[Outline], costs: Sequence[Cost], folder: Path, device: torch.device
) -> list[str]:
    written = [
        # an export writes its source's weights, and the graph
        4.0 * outline.model.model.num_parameters() * (2 if isinstance(outline.stage, Export) else 1)
        for outline in outlines
        if outline.model is not None
    ]
    # each stage's model, the published copy, and a second one while that is renamed into place
    disk = sum(written) + 2 * max(written) + max(cost.checkpoints for cost in costs)
    memory = max(sum(cost.memory.values()) for cost in costs)
    known = [cost.seconds for cost in costs if cost.seconds is not None]
    time_line = f"about {_duration(sum(known))} of training" if known else "not known"
    if known and len(known) < len(costs):
        time_line += ", and the stages whose steps are not known"
    free_memory = psutil.virtual_memory().available
    if device.type == "cuda":
        free_memory = torch.cuda.mem_get_info(device)[0]
        time_line += " (a rough figure: the estimate was fitted to CPUs)"
    base = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free_disk = shutil.disk_usage(base).free
    return [
        "  total",
        f"    time    {time_line}; tokenization, evaluation and benchmark are extra",
        f"    memory  about {_bytes(memory)}; {_free(memory, free_memory)}",
        f"    disk    about {_bytes(disk)}; {_free(disk, free_disk)}",
    ]


def _free(needed: float, free: float) -> str:
    return f"{_bytes(free)} are free{'' if needed < free else ': NOT ENOUGH'}"


# --- one batch ------------------------------------------------------------------------------------


def _batch_lines(recipe: Recipe, outlines: Sequence[Outline], text: Text) -> list[str]:
    """Show the first texts of the sample as the first training would read them."""
    outline = next(
        (outline for outline in outlines if isinstance(outline.stage, (Finetune, Distill))), None
    )
    if outline is None:
        return ["  none: nothing is trained"]
    stage, loaded = outline.stage, outline.model
    assert isinstance(stage, (Finetune, Distill))
    assert loaded is not None
    size = stage.training.micro_batch_size or stage.training.batch_size
    rows = text.sequences[: min(SHOWN_TEXTS, size)]
    seen = [(ids, np.full(len(ids), -1)) for ids in rows]
    if recipe.task == Task.MASKED_LM:
        vocabulary = max(loaded.tokenizer.get_vocab().values()) + 1
        counts = np.bincount(np.concatenate(text.sequences), minlength=vocabulary)
        masker = make_masker(stage.masking, loaded.tokenizer, counts)
        seen = [masker(ids, recipe.seed, 0, index) for index, ids in enumerate(rows)]
    lines = [f"  {len(rows)} of the {size} texts of a micro-batch, as tokens"]
    for index, (ids, gold) in enumerate(seen, start=1):
        tokens = loaded.tokenizer.convert_ids_to_tokens(ids[:SHOWN_TOKENS].tolist())
        more = f" … ({len(ids)} tokens)" if len(ids) > SHOWN_TOKENS else ""
        lines.append(f"  {index}. {' '.join(tokens)}{more}")
        hidden = gold[:SHOWN_TOKENS]
        wanted = loaded.tokenizer.convert_ids_to_tokens(hidden[hidden >= 0].tolist())
        if wanted:
            lines.append(f"     to predict: {' '.join(wanted)}")
    return lines


# --- words ----------------------------------------------------------------------------------------


def _count(number: float) -> str:
    for factor, unit in ((1e9, " G"), (1e6, " M")):
        if number >= factor:
            return f"{number / factor:.3g}{unit}"
    return f"{number:,.0f}"


def _bytes(number: float) -> str:
    return decimal(round(number))


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            number = seconds / size
            return f"{number:.2g} {unit}" if number < 10 else f"{number:,.0f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 1.5 else "a second"
