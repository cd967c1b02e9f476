"""The stage that quantises an ONNX graph, keeps to a budget and says what it did."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill.benchmarking.session import benchmark
from potstill.data import Examples
from potstill.errors import QuantizationFailed
from potstill.graphs import check_parity
from potstill.graphs.parity import Gate, likeness
from potstill.graphs.quantization import FloatGraph
from potstill.graphs.sensitivity import Found, Sensitivity, sensitivities, smallest_set
from potstill.models.finite import check_stored
from potstill.pipeline.context import Context, Outline, Outlook
from potstill.pipeline.stages.benchmark import check_lengths
from potstill.pipeline.stages.evaluate import check_scored, score
from potstill.recipe import Benchmark, Evaluate, Quantize, scoring
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
    check_lengths({"quantize.lengths": max(stage.lengths)}, read, "model")
    if stage.max_drop is not None:
        check_scored(scoring(stage, [stage.model]), outlook)
    return Outline(stage, read)


@dataclass(frozen=True)
class _Kept:
    """What the budget did."""

    key: str
    source_score: float
    plain_score: float
    score: float
    sensitivities: list[Sensitivity]
    found: Found | None


def run(
    stage: Quantize, folder: Path, context: Context, fingerprint: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write `folder`/model, a copy of the source's model folder with a quantised graph beside it.

    Returns:
        The stage's result, and name -> path below the folder of the graph it wrote.

    Raises:
        QuantizationFailed: max_drop can't be met, or require_faster isn't; nothing is left of it.
        ParityFailed: it can't run a corner, gives no numbers or agrees too little; likewise.
        ValueError: the model is no float .onnx file, or onnxruntime can't quantise it.
        OSError: the disk is full.
    """
    graph = context.models[stage.model]
    if not is_onnx(graph):
        raise ValueError(
            f"the model '{stage.model}' ({graph}) is no .onnx file: quantize reads what an export "
            "stage wrote"
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
        self.source = FloatGraph(graph, stage)
        if stage.method != "fp16" and len(self.source.fixed) == len(self.source.layers):
            raise ValueError(
                f"float_layers: all {len(self.source.layers)} layers that could be quantised stay "
                "in float: name fewer"
            )
        self.samples: list[dict[str, np.ndarray]] = []
        if stage.method == "static" or stage.max_drop is not None:
            self.samples = _samples(graph, context.cut_as(stage.model), stage.texts)

    def run(self) -> dict[str, Any]:
        stage, say = self.stage, self.context.reporter.say
        say(f"quantising {len(self.source.layers)} layers, method {stage.method}")
        self.source.write(self.target, samples=self.samples)
        kept = self._budget() if stage.max_drop is not None else None
        parity = self._parity()
        timed = benchmark(
            {stage.model: self.graph, stage.writes: self.target},
            Benchmark(lengths=stage.lengths, rounds=stage.rounds, throughput_batch=1),
        )
        speedup = {n: one["median"] for n, one in timed["ratios"][stage.writes]["speedup"].items()}
        slower = [length for length, ratio in speedup.items() if ratio <= 1]
        notes = [*_notes_of(kept, stage), *_notes_of_speed(slower, speedup, stage)]
        for note in notes:
            say(f"note: {note}")
        if stage.require_faster and slower:
            raise QuantizationFailed(
                f"{stage.writes} is not faster than {stage.model}: "
                f"{_speeds(speedup)} (require_faster)"
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
            "speedup": timed["ratios"][stage.writes]["speedup"],
            "slower": slower,
            "noise": timed["noise"],
            "budget": self._told(kept),
            "parity": parity,
            "findings": notes,
        }

    def _parity(self) -> dict[str, Any]:
        """What is written beside its source, on real text and on the corners, for the result."""
        stage, context = self.stage, self.context.cut_as(self.stage.model)
        source, text = context.open(stage.model), context.heldout_side
        real, *corners = check_parity(source, self.target, text, Gate(agreement=stage.agreement))
        sentence = f"on {real.texts} {context.heldout_texts} {likeness(source, real)}"
        context.reporter.say(f"{stage.writes} beside {stage.model}: {sentence}")
        return {
            "agreement": real.agreement,
            "sentence": sentence,
            "corners": [asdict(corner) for corner in (real, *corners)],
        }

    # --- budget -----------------------------------------------------------------------------------

    def _budget(self) -> _Kept:
        stage, report = self.stage, self.context.reporter
        assert stage.max_drop is not None
        key, scores = self._scores([stage.model, stage.writes])
        source, plain = scores[stage.model], scores[stage.writes]
        least = source - stage.max_drop
        if plain >= least:
            return _Kept(key, source, plain, plain, [], None)
        report.say(
            f"{key} falls from {source:.4f} to {plain:.4f}: looking for the layers that hurt"
        )
        ranked = sensitivities(self.source, self.samples, progress=report.progress)

        def score_with(floats: Sequence[str]) -> float:
            self.source.write(self.target, floats, self.samples)
            # beside its source: the similarity of a model to its own space is 1, whatever it is
            return self._scores([stage.model, stage.writes])[1][stage.writes]

        found = smallest_set([one.layer for one in ranked], score_with, least)
        if found is None or len(found.layers) == len(ranked):
            best = f"{found.score:.4f}" if found is not None else f"at most {plain:.4f}"
            raise QuantizationFailed(
                f"max_drop: {key} of {stage.model} is {source:.4f} and may fall by "
                f"{stage.max_drop:g}; quantised it is {plain:.4f}, and no layer but "
                f"all {len(ranked)} in float brings it back ({best})"
            )
        self.source.write(self.target, found.layers, self.samples)
        return _Kept(key, source, plain, found.score, ranked, found)

    def _scores(self, names: Sequence[str]) -> tuple[str, dict[str, float]]:
        """The score that a task is judged by, of the source and of what is written so far."""
        stage, context = self.stage, self.context
        graphs = {stage.model: self.graph, stage.writes: self.target}
        others = dict(context.models)
        try:
            context.models.update({name: graphs[name] for name in names})
            settings: Evaluate = scoring(stage, names)
            result = score(settings, context)
        finally:
            context.models.clear()
            context.models.update(others)
        key = headline(result)
        part, _, metric = key.partition(".")
        sign = -1.0 if is_loss(metric) else 1.0
        return key, {name: sign * result["models"][name][part][metric] for name in names}

    # --- what is told -----------------------------------------------------------------------------

    def _layers(self, kept: _Kept | None) -> list[dict[str, Any]]:
        ranked = kept.sensitivities if kept is not None else []
        apart = {one.layer: one.divergence for one in ranked}
        floats = {*self.source.fixed, *(kept.found.layers if kept and kept.found else [])}
        if self.stage.method == "fp16":
            floats = set()
        return [
            {
                "name": layer.name,
                "kind": layer.kind,
                "shape": list(layer.shape),
                "float": layer.name in floats,
                "divergence": apart.get(layer.name),
            }
            for layer in self.source.layers
        ]

    def _told(self, kept: _Kept | None) -> dict[str, Any] | None:
        if kept is None:
            return None
        return {
            "score": kept.key,
            "max_drop": self.stage.max_drop,
            "source": kept.source_score,
            "all_quantised": kept.plain_score,
            "reached": kept.score,
            "float_layers": kept.found.layers if kept.found is not None else [],
            "tried": [list(one) for one in kept.found.tried] if kept.found is not None else [],
        }


def headline(result: Mapping[str, Any]) -> str:
    """The score that a model is judged by in an evaluation: such as `retrieval.mrr`."""
    scores = next(iter(result["models"].values()))
    flat = [f"{part}.{metric}" for part, values in scores.items() for metric in values]
    own = f"{result['task']}.{result.get('metric')}"
    fallback = [key for key in flat if key.startswith("similarity.")] + flat
    return next(key for key in [own, *HEADLINES, *fallback] if key in flat)


def _samples(graph: Path, context: Context, count: int) -> list[dict[str, np.ndarray]]:
    """Texts of the training side, one a sample, spread over the lengths that there are."""
    side = context.training_side
    if isinstance(side, Examples):
        side = side.alone()
    order = np.argsort(side.lengths, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]
    wanted = [found.name for found in open_session(graph, 1).get_inputs()]
    samples = []
    for index in chosen.tolist():
        ids_1L = side[index][None].astype(np.int64)
        given = {
            "input_ids": ids_1L,
            "attention_mask": np.ones_like(ids_1L),
            "token_type_ids": np.zeros_like(ids_1L),
        }
        if isinstance(side, Examples) and side.types is not None:
            row = slice(side.offsets[index], side.offsets[index + 1])
            given["token_type_ids"] = side.types[row][None].astype(np.int64)
        samples.append({name: given[name] for name in wanted})
    return samples


def _notes_of(kept: _Kept | None, stage: Quantize) -> list[str]:
    if kept is None or kept.found is None:
        return []
    return [
        f"{stage.writes} keeps {len(kept.found.layers)} of {len(kept.sensitivities)} layers in "
        f"float, which alone move its answers most ({', '.join(kept.found.layers)}): with them "
        f"quantised {kept.key} is {kept.plain_score:.4f}, with them in float {kept.score:.4f}, "
        f"and {kept.source_score:.4f} before"
    ]


def _notes_of_speed(
    slower: Sequence[str], speedup: Mapping[str, float], stage: Quantize
) -> list[str]:
    if not slower:
        return []
    why = " on this CPU; it is meant for GPUs" if stage.method == "fp16" else ""
    return [f"{stage.writes} is slower than {stage.model}: {_speeds(speedup)}{why}"]


def _speeds(speedup: Mapping[str, float]) -> str:
    return ", ".join(f"{ratio:.2f} times its speed at {n} tokens" for n, ratio in speedup.items())
