"""Prune a model by importance, and measure what that cost before recovery."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
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
from potstill.pipeline.context import Context, Done, TokenizedText
from potstill.pipeline.outlook import Outline, Outlook, check_text_length
from potstill.recipe import Prune, Student, StudentFamily, Task
from potstill.reporting.phrases import pruning_note
from potstill.tasks.heads import embedded, in_batch_signals

VERSION = 1
MEASURED = 256  # held-out texts that the effect is measured on


def check(stage: Prune, outlook: Outlook) -> Outline:
    with outlook.named():
        loaded = outlook.model(stage.model)
        check_text_length(outlook.recipe.text, loaded)
        encoder = Encoder(loaded.model, loaded.family)
        layers, widths = kept_of(stage, encoder)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model = shaped(encoder, list(range(layers)), widths)
    why = (
        f"{layers} layers of width {widths.hidden}, intermediate size {widths.ffn:,}, "
        f"{model.num_parameters() / 1e6:.3g} M parameters"
    )
    made = with_model(loaded, model, *stage.written)
    return Outline(stage, made, (loaded,), why)


def kept_of(stage: Prune, encoder: Encoder) -> tuple[int, Widths]:
    """Return the number of layers that a stage leaves of a model, and their widths.

    Args:
        stage: What the user asks for.
        encoder: The model with its family.

    Raises:
        ValueError: The stage asks for more than the model has, or would prune nothing.
    """
    config = encoder.model.config
    old, depth = encoder.widths, int(config.num_hidden_layers)
    ffn = old.ffn if stage.ffn is None else units_to_keep(stage.ffn, old.ffn)
    layers = depth if stage.layers is None else stage.layers
    if layers > depth:
        raise ValueError(f"layers: {layers} is out of range, the model has {depth}. Set fewer.")
    if stage.layers == depth:
        raise ValueError(
            f"layers: the model has {depth} already, so nothing would be pruned. Set fewer."
        )
    widths = Widths(*_hidden(stage.width, old), ffn)
    narrow_config(config, encoder.family, widths)  # refuses impossible widths
    return layers, widths


def _hidden(width: int | None, old: Widths) -> tuple[int, int]:
    """Return the hidden size and the number of heads that stay."""
    each = old.hidden // old.heads
    if width is None:
        return old.hidden, old.heads
    if width > old.hidden:
        raise ValueError(f"width: {width} is out of range, the model's is {old.hidden}. Set less.")
    if width == old.hidden:
        raise ValueError(f"width: the model's is {width} already. Set less.")
    if width % each:
        raise ValueError(
            f"width: {width} is not a multiple of {each}, the width of one of the model's heads. "
            f"Set a multiple of {each}."
        )
    return width, width // each


def run(stage: Prune, folder: Path, context: Context, fingerprint: str) -> Done:
    """Write `folder`/model, the pruned model.

    Raises:
        ValueError: The model can't be pruned so, or there is no text for taylor.
        OSError: The disk is full.
    """
    text, loaded = context.text_for(stage.model), context.open(stage.model)
    [name] = stage.written
    layers, widths = kept_of(stage, Encoder(loaded.model, loaded.family))
    nn.Module.to(loaded.model, measuring_device())
    pruning = _Pruning(stage, loaded, text)
    model, told = pruning.run(layers, widths)
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
        "effect": _effect(loaded, pruned, text),
    }
    nn.Module.to(model, "cpu")
    save_model(pruned, folder / "model")
    context.reporter.say(f"{name}: {pruning_note(result)}")
    context.reporter.say("train it again: a distill stage recovers much of what that cost")
    return result, {name: "model"}


class _Pruning:
    def __init__(self, stage: Prune, loaded: LoadedModel, text: TokenizedText) -> None:
        self.stage, self.loaded, self.text = stage, loaded, text
        self.read = 0  # texts, by the last scores

    def run(self, kept: int, widths: Widths) -> tuple[PreTrainedModel, dict[str, Any]]:
        """Return the pruned model, and what was pruned, for result.json."""
        family, told = self.loaded.family, dict[str, Any]()
        encoder = Encoder(self.loaded.model, family)
        depth = int(encoder.model.config.num_hidden_layers)
        if kept < depth:
            scores = layer_taylor(encoder, self._read("layers", encoder.model))
            layers = most_important(scores, kept, family)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                encoder = Encoder(shaped(encoder, layers, encoder.widths), family)
            nn.Module.to(encoder.model, measuring_device())
            told["layers"] = {"before": depth, "after": kept, "kept": layers}
            told["layers"]["importance"] = (scores / scores.sum().clamp(min=1e-30)).tolist()
            told["warnings"] = [str(w.message) for w in caught if w.category is UserWarning]
        ffn = encoder.widths.ffn
        if widths.ffn < ffn:
            if self.stage.importance == "magnitude":
                scores = unit_magnitudes(encoder)
            else:
                scores = unit_taylor(encoder, self._read("FFN units", encoder.model))
            encoder = Encoder(prune_ffn(encoder, scores, widths.ffn), family)
            of_kept = scores.topk(widths.ffn).values.sum(-1) / scores.sum(-1).clamp(min=1e-30)
            told["ffn"] = {"before": ffn, "after": widths.ffn}
            told["ffn"]["importance_kept"] = of_kept.tolist()
        if widths.hidden == encoder.widths.hidden:
            return encoder.model, told
        model, told["width"] = self._narrowed(encoder, widths)
        return model, told

    def _narrowed(self, encoder: Encoder, widths: Widths) -> tuple[PreTrainedModel, dict[str, Any]]:
        old, side = encoder.widths, self.text.training_side
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
        """Return the training texts that importance reads, and a model's loss on them."""
        side = self.text.training_side
        if self.stage.importance == "taylor":
            self.read = min(self.stage.texts, len(side))
            self.text.context.reporter.say(
                f"importance of {what}: gradients of {self.read:,} training texts"
            )
        loss = task_loss(with_model(self.loaded, model, self.loaded.name))
        return Evidence(self._batches, loss)

    def _batches(self) -> Iterator[Batch]:
        side, done = self.text.training_side, 0
        for batch in self.text.batches(side, self.read):
            yield batch
            done += BATCH
            self.text.context.reporter.progress(min(done / self.read, 1.0))


def most_important(scores: Tensor, count: int, family: Family) -> list[int]:
    """Return the most important layers, in order; the first one stays where it is special."""
    order = scores.argsort(descending=True, stable=True).tolist()
    if family.first_layer_is_special:
        order.remove(0)
        order.insert(0, 0)
    return sorted(order[:count])


def shaped(
    encoder: Encoder, layers: list[int], widths: Widths, choice: Choice | None = None
) -> PreTrainedModel:
    """Build a model of the same class with some of the layers, or narrower."""
    own: StudentFamily | None = "bert" if encoder.family.model_type == "bert" else None
    surgery = Surgery(encoder, Student(layers=layers, family=own))  # BERT stays BERT
    return surgery.build(Shape(layers, widths, ""), choice=choice)


def _both(before: Any, after: Any, count: Callable[[Any], int]) -> dict[str, int]:
    return {"before": count(before), "after": count(after)}


def _weight_bytes(model: PreTrainedModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


# --- text, and what pruning did to it -------------------------------------------------------------


def _effect(before: LoadedModel, after: LoadedModel, text: TokenizedText) -> dict[str, Any]:
    """Measure what is lost before any training, on text that no model was trained on."""
    task, side = before.task, text.heldout_side
    texts = min(MEASURED, len(side))

    def batches() -> Iterator[Batch]:
        return text.batches(side, texts)

    if task == Task.SENTENCE_EMBEDDING:
        alike = _correlation(before, after, batches())
        name = "correlation of similarities"
        return {"measure": name, "texts": texts, "before": 1.0, "after": alike}
    losses = [mean_loss(one, batches()) for one in (before, after)]
    name = "cross-entropy" if task.has_distribution else "squared difference"
    return {"measure": name, "texts": texts, "before": losses[0], "after": losses[1]}


@torch.no_grad()
def _correlation(before: LoadedModel, after: LoadedModel, batches: Iterator[Batch]) -> float | None:
    """Correlate (Pearson) the cosine similarities within batches; None for too few texts."""
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
    signals = in_batch_signals(*embedded(loaded, batch), scale=1.0, group=BATCH)
    assert signals.vectors_BD is not None
    return signals.vectors_BD
