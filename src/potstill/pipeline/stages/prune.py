"""The stage that prunes a model by importance, and tells what that did to it before recovery."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.compression.importance import BATCH, mean_loss, task_loss
from potstill.compression.narrowing import TEXTS, Choice, narrow_config
from potstill.compression.parts import Encoder, Widths
from potstill.compression.pruning import chosen_width, prune_ffn, units_to_keep
from potstill.compression.scores import Evidence, layer_taylor, unit_magnitudes, unit_taylor
from potstill.compression.shapes import Shape
from potstill.compression.students import Surgery
from potstill.data import Batch
from potstill.models import LoadedModel, save_model
from potstill.models.devices import measuring_device
from potstill.models.families import Family
from potstill.models.loading import with_model
from potstill.pipeline.context import Context, Outline, Outlook, check_length, sampled_batches
from potstill.recipe import Prune, Student, StudentFamily, Task
from potstill.reporting.phrases import pruning_note
from potstill.tasks.heads import embedding_signals

VERSION = 1
MEASURED = 256  # held-out texts that the effect is measured on


def check(stage: Prune, outlook: Outlook) -> Outline:
    with outlook.named():
        loaded = outlook.model(stage.model)
        check_length(outlook.recipe.text, loaded)
        return _outlined(stage, loaded)


def _outlined(stage: Prune, loaded: LoadedModel) -> Outline:
    encoder = Encoder(loaded.model, loaded.family)
    kept = kept_of(stage, encoder)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = blank(encoder, kept)
    widths = kept.widths
    why = (
        f"{kept.layers} layers of width {widths.hidden}, {widths.ffn:,} inner units, "
        f"{model.num_parameters() / 1e6:.3g} M parameters"
    )
    made = with_model(loaded, model, stage.writes or stage.model)
    return Outline(stage, made, (loaded,), why)


@dataclass(frozen=True)
class TargetShape:
    """What stays of a model: as many layers, and their widths."""

    layers: int
    widths: Widths


def kept_of(stage: Prune, encoder: Encoder) -> TargetShape:
    """What a stage leaves of a model with this config.

    Raises:
        ValueError: more than there is, or nothing would be pruned.
    """
    config = encoder.model.config
    old, depth = encoder.widths, int(config.num_hidden_layers)
    ffn = old.ffn if stage.ffn is None else units_to_keep(stage.ffn, old.ffn)
    layers = depth if stage.layers is None else stage.layers
    if layers > depth:
        raise ValueError(f"layers: {layers} is out of range: the model has {depth}")
    if stage.layers == depth:
        raise ValueError(f"layers: the model has {depth} already, so there is nothing to prune")
    widths = Widths(*_hidden(stage.width, old), ffn)
    narrow_config(config, encoder.family, widths)  # complains of widths that can't be
    return TargetShape(layers, widths)


def _hidden(width: int | None, old: Widths) -> tuple[int, int]:
    """Hidden size and heads that stay."""
    each = old.hidden // old.heads
    if width is None:
        return old.hidden, old.heads
    if width > old.hidden:
        raise ValueError(f"width: {width} is out of range: the model's is {old.hidden}")
    if width == old.hidden:
        raise ValueError(f"width: the model's is {width} already, so there is nothing to prune")
    if width % each:
        raise ValueError(
            f"width: {width} holds no whole heads of {each}, the width of the model's: take a "
            f"multiple of {each}"
        )
    return width, width // each


def blank(encoder: Encoder, kept: TargetShape) -> PreTrainedModel:
    """A model of the shape that is left, on the meta device, as `encoder` is."""
    return shaped(encoder, list(range(kept.layers)), kept.widths)


def run(
    stage: Prune, folder: Path, context: Context, fingerprint: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write `folder`/model, the pruned model.

    Returns:
        The stage's result, and name -> path below the folder of the model it wrote.

    Raises:
        ValueError: the model can't be pruned so, or there is no text for taylor.
        OSError: the disk is full.
    """
    context = context.cut_as(stage.model)
    loaded = context.open(stage.model)
    name = stage.writes or stage.model
    kept = kept_of(stage, Encoder(loaded.model, loaded.family))
    nn.Module.to(loaded.model, measuring_device())
    pruning = _Pruning(stage, loaded, context)
    model, told = pruning.run(kept)
    nn.Module.to(model, measuring_device())
    pruned = with_model(loaded, model, name)
    result = {
        "from": stage.model,
        "to": name,
        "importance": stage.importance,
        "texts": pruning.read,
        **told,
        "parameters": _both(loaded.model, model, lambda m: int(m.num_parameters())),
        "weight_bytes": _both(loaded.model, model, _weight_bytes),
        "effect": _effect(loaded, pruned, context),
    }
    nn.Module.to(model, "cpu")
    save_model(pruned, folder / "model")
    context.reporter.say(f"{name}: {pruning_note(result)}")
    context.reporter.say("train it again: a distill stage wins back much of what that cost")
    return result, {name: "model"}


class _Pruning:
    def __init__(self, stage: Prune, loaded: LoadedModel, context: Context) -> None:
        self.stage, self.loaded, self.context = stage, loaded, context
        self.read = 0  # texts, by the last scores

    def run(self, kept: TargetShape) -> tuple[PreTrainedModel, dict[str, Any]]:
        """The pruned model, and what was cut, for result.json."""
        family, told = self.loaded.family, dict[str, Any]()
        encoder = Encoder(self.loaded.model, family)
        depth = int(encoder.model.config.num_hidden_layers)
        if kept.layers < depth:
            scores = layer_taylor(encoder, self._read("layers", encoder.model))
            layers = most_important(scores, kept.layers, family)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                encoder = Encoder(shaped(encoder, layers, encoder.widths), family)
            nn.Module.to(encoder.model, measuring_device())
            told["layers"] = {"before": depth, "after": kept.layers, "kept": layers}
            told["layers"]["importance"] = _shares(scores)
            told["warnings"] = [str(w.message) for w in caught if w.category is UserWarning]
        width = encoder.widths.ffn
        if kept.widths.ffn < width:
            if self.stage.importance == "magnitude":
                scores = unit_magnitudes(encoder)
            else:
                scores = unit_taylor(encoder, self._read("inner units", encoder.model))
            encoder = Encoder(prune_ffn(encoder, scores, kept.widths.ffn), family)
            of_kept = scores.topk(kept.widths.ffn).values.sum(-1) / scores.sum(-1).clamp(min=1e-30)
            told["ffn"] = {"before": width, "after": kept.widths.ffn}
            told["ffn"]["importance_kept"] = of_kept.tolist()
        if kept.widths.hidden == encoder.widths.hidden:
            return encoder.model, told
        model, told["width"] = self._narrowed(encoder, kept.widths)
        return model, told

    def _narrowed(self, encoder: Encoder, widths: Widths) -> tuple[PreTrainedModel, dict[str, Any]]:
        old, side = encoder.widths, self.context.training_side
        sample = [side[i].tolist() for i in range(min(len(side), TEXTS))]
        evidence = self._read("directions and heads", encoder.model)
        choice = chosen_width(encoder, widths.hidden, self.stage, sample, evidence)
        layers = list(range(int(encoder.model.config.num_hidden_layers)))
        return shaped(encoder, layers, widths, choice), {
            "before": old.hidden,
            "after": widths.hidden,
            "heads": {"before": old.heads, "after": widths.heads},
            "directions": self.stage.directions,
            "share_kept": choice.share,
        }

    def _read(self, what: str, model: PreTrainedModel) -> Evidence:
        """The training texts that importance reads, and a model's loss on them."""
        side = self.context.training_side
        if self.stage.importance == "taylor":
            self.read = min(self.stage.texts, len(side))
            self.context.reporter.say(
                f"importance of {what}: gradients of {self.read:,} training texts"
            )
        loss = task_loss(with_model(self.loaded, model, self.loaded.name))
        return Evidence(self._batches, loss)

    def _batches(self) -> Iterator[Batch]:
        side, done = self.context.training_side, 0
        for batch in sampled_batches(self.context, side, self.read):
            yield batch
            done += BATCH
            self.context.reporter.progress(min(done / self.read, 1.0))


def most_important(scores: Tensor, count: int, family: Family) -> list[int]:
    """The layers with the highest scores, in order; the first one stays where it is special."""
    order = scores.argsort(descending=True, stable=True).tolist()
    if family.first_layer_is_special:
        order.remove(0)
        order.insert(0, 0)
    return sorted(order[:count])


def shaped(
    encoder: Encoder, layers: list[int], widths: Widths, choice: Choice | None = None
) -> PreTrainedModel:
    """The same class with some of its layers, or narrower."""
    own: StudentFamily | None = None
    if encoder.family.model_type == "bert":
        own = "bert"  # and no DistilBERT
    surgery = Surgery(encoder, Student(layers=layers, family=own))
    return surgery.build(Shape(layers, widths, ""), choice=choice)


def _shares(scores: Tensor) -> list[float]:
    shares: list[float] = (scores / scores.sum().clamp(min=1e-30)).tolist()
    return shares


def _both(before: Any, after: Any, count: Callable[[Any], int]) -> dict[str, int]:
    return {"before": count(before), "after": count(after)}


def _weight_bytes(model: PreTrainedModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


# --- text, and what pruning did to it -------------------------------------------------------------


def _effect(before: LoadedModel, after: LoadedModel, context: Context) -> dict[str, Any]:
    """What is lost before any training, on text that no model was trained on."""
    side = context.heldout_side
    texts = min(MEASURED, len(side))

    def batches() -> Iterator[Batch]:
        return sampled_batches(context, side, texts)

    if context.task == Task.SENTENCE_EMBEDDING:
        alike = _correlation(before, after, batches())
        name = "correlation of similarities"
        return {"measure": name, "texts": texts, "before": 1.0, "after": alike}
    losses = [mean_loss(one, batches()) for one in (before, after)]
    name = "squared difference" if not context.task.has_distribution else "cross-entropy"
    return {"measure": name, "texts": texts, "before": losses[0], "after": losses[1]}


@torch.no_grad()
def _correlation(before: LoadedModel, after: LoadedModel, batches: Iterator[Batch]) -> float | None:
    """Pearson's, of the cosine similarities within batches; None where too few texts have any."""
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for batch in batches:
        above = torch.ones(len(batch), len(batch), dtype=torch.bool).triu(1)
        for loaded, similarities in zip((before, after), found, strict=True):
            unit_BD = _vectors(loaded, batch)
            similarities.append((unit_BD @ unit_BD.T).cpu()[above])
    pair = [torch.cat(similarities).double().numpy() for similarities in found]
    if len(pair[0]) < 2 or min(values.std() for values in pair) == 0:
        return None
    return float(np.corrcoef(pair[0], pair[1])[0, 1])


def _vectors(loaded: LoadedModel, batch: Batch) -> Tensor:
    signals = embedding_signals(loaded, batch, scale=1.0, group=BATCH)
    assert signals.vectors_BD is not None
    return signals.vectors_BD
