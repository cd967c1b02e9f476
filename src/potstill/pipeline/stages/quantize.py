"""Quantize an ONNX graph, within limits on what its score may lose."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from potstill.benchmarking.session import benchmark
from potstill.data import Examples, collate
from potstill.errors import QuantizationFailed
from potstill.evaluation.lineup import Lineup
from potstill.graphs import check_parity
from potstill.graphs.parity import Gate, likeness
from potstill.graphs.quantization import FloatGraph
from potstill.graphs.sensitivity import Found, Sensitivity, sensitivities, smallest_set
from potstill.models.finite import check_stored
from potstill.pipeline.context import Context, Done, TokenizedText
from potstill.pipeline.outlook import Outline, Outlook, check_length
from potstill.pipeline.stages.evaluate import check_scored, score
from potstill.recipe import Benchmark, Evaluate, Quantize
from potstill.storage.files import whole_or_gone
from potstill.storage.model_folders import check_folder
from potstill.storage.onnx_files import (
    ONNX,
    QUANTIZED,
    count_parameters,
    folder_of,
    is_onnx,
    open_session,
    require_onnx,
    weight_bytes,
)
from potstill.tasks.score_names import HEADLINES, is_loss

VERSION = 1


def check(stage: Quantize, outlook: Outlook) -> Outline:
    read = outlook.model(stage.model)
    require_onnx()
    check_length("quantize.lengths", max(stage.lengths), read)
    if stage.max_drop is not None:
        check_scored(_scoring(stage), outlook)
    return Outline(stage, read)


def _scoring(stage: Quantize) -> Evaluate:
    """Return the evaluation that max_drop is judged by."""
    return Evaluate(
        baseline=stage.model, query=stage.query, passage=stage.passage, label=stage.label
    )


@dataclass(frozen=True)
class _Kept:
    """Hold what the budget did.

    Attributes:
        key: The score that the task is judged by.
        source, plain, score: Its value for the float graph, for all layers quantized, and reached.
    """

    key: str
    source: float
    plain: float
    score: float
    sensitivities: Sequence[Sensitivity] = ()
    found: Found | None = None

    @property
    def floats(self) -> list[str]:
        """Return the layers that stay in float for the score's sake."""
        return self.found.layers if self.found is not None else []


def run(stage: Quantize, folder: Path, context: Context, fingerprint: str) -> Done:
    """Write `folder`/model, a copy of the source's model folder with a quantized graph beside it.

    Raises:
        QuantizationFailed: max_drop can't be met, or require_faster isn't; no file is left of it.
        ParityFailed: The graph can't run a corner, gives no numbers or agrees too little.
        ValueError: The model is not a float .onnx file, or onnxruntime can't quantize it.
        OSError: The disk is full.
    """
    graph = context.models[stage.model]
    if not is_onnx(graph):
        raise ValueError(
            f"model: '{stage.model}' ({graph}) is not an .onnx file. Name what an export stage "
            "wrote."
        )
    target, around = folder / "model", folder_of(graph)
    check_folder(around, around.rglob("*"))  # a link would be copied as what it leads to
    check_stored(around)
    with whole_or_gone(target):
        shutil.copytree(around, target)
        result = _Quantizing(stage, graph, target / ONNX / QUANTIZED, context).run()
    return result, {stage.writes: f"model/{ONNX}/{QUANTIZED}"}


class _Quantizing:
    def __init__(self, stage: Quantize, graph: Path, target: Path, context: Context) -> None:
        self.stage, self.graph, self.target, self.context = stage, graph, target, context
        self.text = context.text_for(stage.model)
        self.source = FloatGraph(graph, stage)
        if stage.method != "fp16" and len(self.source.fixed) == len(self.source.layers):
            raise ValueError(
                f"float_layers: all {len(self.source.layers)} layers that could be quantized stay "
                "in float. Name fewer."
            )
        self.samples: list[dict[str, np.ndarray]] = []
        if stage.method == "static" or stage.max_drop is not None:
            self.samples = _samples(graph, self.text, stage.texts)

    def run(self) -> dict[str, Any]:
        stage, say = self.stage, self.context.reporter.say
        say(f"quantizing {len(self.source.layers)} layers, method {stage.method}")
        self.source.write(self.target, samples=self.samples)
        kept = self._budget(stage.max_drop) if stage.max_drop is not None else None
        parity = self._parity()
        timed = benchmark(
            {stage.model: self.graph, stage.writes: self.target},
            Benchmark(lengths=stage.lengths, rounds=stage.rounds, throughput_batch=1),
        )
        speedup = timed["ratios"][stage.writes]["speedup"]
        slower = [length for length, one in speedup.items() if one["median"] <= 1]
        times = [f"{one['median']:.2f} times its speed at {n} tokens" for n, one in speedup.items()]
        speeds = ", ".join(times)
        notes = self._notes(kept, speeds if slower else None)
        self.context.note(*notes)
        if stage.require_faster and slower:
            raise QuantizationFailed(
                f"require_faster: {stage.writes} is not faster than {stage.model}: {speeds}. "
                "Omit the key to accept that."
            )
        return {
            "model": stage.model,
            "method": stage.method,
            "weight_range": {
                "bits": 7 if self.source.range.reduced else 8,
                "why": self.source.range.why,
            },
            "layers": self._layers(kept),
            "weight_bytes": weight_bytes(self.target),
            "source_weight_bytes": weight_bytes(self.graph),
            "parameters": count_parameters(self.target),
            "speedup": speedup,
            "slower": slower,
            "noise": timed["noise"],
            "budget": kept
            and {
                "score": kept.key,
                "max_drop": stage.max_drop,
                "source": kept.source,
                "all_quantised": kept.plain,
                "reached": kept.score,
                "float_layers": kept.floats,
                "tried": [list(one) for one in kept.found.tried] if kept.found else [],
            },
            "parity": parity,
            "findings": notes,
        }

    def _parity(self) -> dict[str, Any]:
        """Compare the graph with its source, on real text and on the corners, for result.json."""
        stage, text = self.stage, self.text
        source = self.context.open(stage.model)
        gate = Gate(agreement=stage.agreement)
        real, *corners = check_parity(source, self.target, text.heldout_side, gate)
        sentence = f"on {real.texts} {text.heldout_name} {likeness(source, real)}"
        self.context.reporter.say(f"{stage.writes} compared with {stage.model}: {sentence}")
        return {
            "agreement": real.agreement,
            "sentence": sentence,
            "corners": [asdict(corner) for corner in (real, *corners)],
        }

    # --- budget -----------------------------------------------------------------------------------

    def _budget(self, max_drop: float) -> _Kept:
        stage, reporter = self.stage, self.context.reporter
        key, scores = self._scores()
        source, plain = scores[stage.model], scores[stage.writes]
        least = source - max_drop
        if plain >= least:
            return _Kept(key, source, plain, plain)
        reporter.say(
            f"{key} falls from {source:.4f} to {plain:.4f}: looking for the layers that cost most"
        )
        ranked = sensitivities(self.source, self.samples, progress=reporter.progress)

        def score_with(floats: Sequence[str]) -> float:
            self.source.write(self.target, floats, self.samples)
            return self._scores()[1][stage.writes]

        found = smallest_set([one.layer for one in ranked], score_with, least)
        if found is None or len(found.layers) == len(ranked):
            best = f"{found.score:.4f}" if found is not None else f"at most {plain:.4f}"
            raise QuantizationFailed(
                f"max_drop: {key} of {stage.model} is {source:.4f} and may fall by {max_drop:g}; "
                f"quantized it is {plain:.4f}, and no layer but all {len(ranked)} in float brings "
                f"it back ({best}). Raise max_drop, or try another method."
            )
        self.source.write(self.target, found.layers, self.samples)
        return _Kept(key, source, plain, found.score, ranked, found)

    def _scores(self) -> tuple[str, dict[str, float]]:
        """Score the source, and the graph as written so far, as the task is judged."""
        stage = self.stage
        # both: the similarity of a model to its own vectors is 1, whatever it is
        graphs = {stage.model: [self.graph], stage.writes: [self.target]}
        lineup = Lineup(graphs, stage.model, self.context.seed)
        result = score(_scoring(stage), lineup, self.context, lambda _: self.text)
        key = headline(result)
        part, _, metric = key.partition(".")
        sign = -1.0 if is_loss(metric) else 1.0
        return key, {name: sign * result["models"][name][part][metric] for name in graphs}

    # --- result -----------------------------------------------------------------------------------

    def _notes(self, kept: _Kept | None, speeds: str | None) -> list[str]:
        """Return what a reader must not miss; `speeds`: of a graph that is slower."""
        stage, notes = self.stage, []
        if kept is not None and kept.floats:
            notes.append(
                f"{stage.writes} keeps {len(kept.floats)} of {len(kept.sensitivities)} layers in "
                f"float, which change its outputs most ({', '.join(kept.floats)}): with them "
                f"quantized {kept.key} is {kept.plain:.4f}, with them in float {kept.score:.4f}, "
                f"and {kept.source:.4f} before"
            )
        if speeds is not None:
            why = " on this CPU; it is meant for GPUs" if stage.method == "fp16" else ""
            notes.append(f"{stage.writes} is slower than {stage.model}: {speeds}{why}")
        return notes

    def _layers(self, kept: _Kept | None) -> list[dict[str, Any]]:
        divergences = {one.layer: one.divergence for one in kept.sensitivities} if kept else {}
        floats = {*self.source.fixed, *(kept.floats if kept else [])}
        return [
            {
                "name": layer.name,
                "kind": layer.kind,
                "shape": list(layer.shape),
                "float": layer.name in floats and self.stage.method != "fp16",
                "divergence": divergences.get(layer.name),
            }
            for layer in self.source.layers
        ]


def headline(result: Mapping[str, Any]) -> str:
    """Return the score that a model is judged by in an evaluation, such as `retrieval.mrr`."""
    scores = next(iter(result["models"].values()))
    flat = [f"{part}.{metric}" for part, values in scores.items() for metric in values]
    own = f"{result['task']}.{result.get('metric')}"
    fallback = [key for key in flat if key.startswith("similarity.")] + flat
    return next(key for key in [own, *HEADLINES, *fallback] if key in flat)


def _samples(graph: Path, text: TokenizedText, count: int) -> list[dict[str, np.ndarray]]:
    """Return training texts, one per sample, spread over all lengths."""
    side = text.training_side
    if isinstance(side, Examples):
        side = side.alone()
    order = np.argsort(side.lengths, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]
    wanted = [found.name for found in open_session(graph, 1).get_inputs()]
    samples = []
    for index_1 in chosen[:, None]:
        batch = collate(side, index_1, 0)
        ids_1L, types_1L = batch.input_ids_BL, batch.token_type_ids_BL
        given = {
            "input_ids": ids_1L,
            "attention_mask": batch.attention_mask_BL,
            "token_type_ids": torch.zeros_like(ids_1L) if types_1L is None else types_1L,
        }
        samples.append({name: given[name].numpy() for name in wanted})
    return samples
