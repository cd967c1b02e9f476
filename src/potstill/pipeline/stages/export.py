"""Write a model as an ONNX graph, and refuse a graph whose outputs differ from the model's."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from potstill.compression.importance import task_loss
from potstill.compression.parts import Encoder
from potstill.compression.pruning import KeptParts, kept_number, ranked, relative, reshaped
from potstill.compression.scores import (
    Evidence,
    head_magnitudes,
    head_taylor,
    unit_magnitudes,
    unit_taylor,
)
from potstill.graphs import check_parity, write_graph
from potstill.graphs.graph import OPSET, input_names, output_names
from potstill.graphs.parity import Gate, likeness
from potstill.models import LoadedModel, save_model
from potstill.models.devices import measuring_device
from potstill.pipeline.context import Context, Done, TokenizedText
from potstill.pipeline.outlook import Outline, Outlook
from potstill.recipe import Export, GraphPruning
from potstill.storage.files import whole_or_gone
from potstill.storage.onnx_files import (
    GRAPH,
    ONNX,
    count_parameters,
    graph_files,
    require_onnx,
    weight_bytes,
)

VERSION = 1
_WORK = f".{ONNX}.tmp"  # beside the folder onnx/, until the graph has passed the gate
_JUDGED = 256  # held-out texts that a pruned graph is compared with its source on
ALONE = (
    "only the ONNX graph has this shape, which config.json can't describe; the weights in the "
    "folder around it stay whole"
)


def check(stage: Export, outlook: Outlook) -> Outline:
    read, why = outlook.model(stage.model), ""
    require_onnx()
    if stage.prune is not None:
        check_shares(stage.prune, read)
        why = f"{stage.model} pruned: {ALONE}"
    return Outline(stage, read, why=why)


def run(stage: Export, folder: Path, context: Context, fingerprint: str) -> Done:
    """Write `folder`/model, a whole model folder with onnx/model.onnx in it.

    Raises:
        ParityFailed: The graph's outputs differ from the model's, or the pruned graph agrees too
            little with the model; no file is left of it.
        ValueError: onnx is not installed, or can't express the model.
        OSError: The disk is too full.
    """
    source, text = context.open(stage.model), context.text_for(stage.model)
    target, side = folder / "model", text.heldout_side
    _check_disk(folder, source.model.num_parameters())
    shaped, kept = source, None
    if stage.prune is not None:
        kept = _chosen(stage, stage.prune, source, text)
        encoder = Encoder(source.model, source.family)
        shaped = replace(source, model=reshaped(encoder, kept["heads"], kept["ffn"]))
    pruned: dict[str, Any] = {}
    with whole_or_gone(target):
        context.reporter.say(f"writing {stage.writes} as an ONNX graph of opset {OPSET}")
        save_model(source, target)
        work = target / _WORK
        work.mkdir()
        graph = write_graph(shaped, work)
        corners = check_parity(shaped, graph, side, Gate(tolerance=stage.tolerance))
        if kept is not None:
            pruned = _judged(stage, source, graph, kept, text)
        os.rename(work, target / ONNX)
    graph = target / ONNX / GRAPH
    result = {
        "model": stage.model,
        "opset": OPSET,
        "inputs": input_names(source),
        "outputs": output_names(source.task),
        "files": [path.name for path in graph_files(graph)],
        "weight_bytes": weight_bytes(graph),
        "parameters": count_parameters(graph),
        "tolerance": stage.tolerance,
        "difference": max(max(corner.difference.values()) for corner in corners),
        "corners": [asdict(corner) for corner in corners],
        **pruned,
    }
    return result, {stage.writes: f"model/{ONNX}/{GRAPH}"}


def _check_disk(folder: Path, parameters: int) -> None:
    """Refuse a disk that can't hold the weights, the exporter's graph and the finished one."""
    needed, free = 3 * 4 * parameters, shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the export needs about {needed / 1e6:,.0f} MB of disk space, and only "
            f"{free / 1e6:,.0f} MB are free. Free some space",
            os.fspath(folder),
        )


# --- shapes that only a graph can have ------------------------------------------------------------


def check_shares(prune: GraphPruning, loaded: LoadedModel) -> dict[str, int]:
    """Return how many heads (or groups of heads) and FFN units stay in all layers together.

    Raises:
        ValueError: Nothing would be pruned.
    """
    layers = int(loaded.model.config.num_hidden_layers)
    encoder = Encoder(loaded.model, loaded.family)
    of = {"heads": encoder.groups, "ffn": encoder.widths.ffn}
    shares = {"heads": prune.heads, "ffn": prune.ffn}
    return {
        key: kept_number(share, layers, of[key], f"prune.{key}")
        for key, share in shares.items()
        if share is not None
    }


def _chosen(
    stage: Export, prune: GraphPruning, source: LoadedModel, text: TokenizedText
) -> dict[str, KeptParts | None]:
    """Choose what stays of each layer, and report it before anything is written."""
    say, found = text.context.reporter.say, dict[str, KeptParts | None](heads=None, ffn=None)
    counts = check_shares(prune, source)
    say(f"{stage.writes} will be smaller than {stage.model}; {ALONE}")
    encoder = Encoder(source.model, source.family)
    evidence = Evidence(lambda: text.batches(text.training_side, prune.texts), task_loss(source))

    def scores(key: str) -> Tensor:
        if prune.importance == "magnitude":
            by_size = {"heads": head_magnitudes, "ffn": unit_magnitudes}
            return relative(by_size[key](encoder))
        by_loss = {"heads": head_taylor, "ffn": unit_taylor}
        return by_loss[key](encoder, evidence)

    nn.Module.to(source.model, measuring_device())
    for key, count in counts.items():
        found[key] = ranked(scores(key), count)
    nn.Module.to(source.model, "cpu")
    for name, (numbers, of) in _told(found, source).items():
        layers = ", ".join(map(str, numbers))
        say(f"{stage.writes} keeps {sum(numbers)} of {of * len(numbers)} {name}: {layers}")
    return found


def _told(
    kept: dict[str, KeptParts | None], source: LoadedModel
) -> dict[str, tuple[list[int], int]]:
    """Return for each kind of part how many stay in each layer, and how many there are."""
    encoder = Encoder(source.model, source.family)
    widths, groups = encoder.widths, encoder.groups
    heads, units = kept["heads"], kept["ffn"]
    found = {}
    if heads is not None:
        each = widths.heads // groups
        found["attention heads"] = [each * len(one) for one in heads], widths.heads
    if units is not None:
        found["inner FFN units"] = [len(one) for one in units], widths.ffn
    return found


def _judged(
    stage: Export,
    source: LoadedModel,
    graph: Path,
    kept: dict[str, KeptParts | None],
    text: TokenizedText,
) -> dict[str, Any]:
    """Compare the pruned graph with the whole model on held-out text, for result.json.

    Raises:
        ParityFailed: The graph agrees too little.
    """
    prune, side = stage.prune, text.heldout_side
    assert prune is not None
    gate = Gate(agreement=prune.agreement, texts=_JUDGED, corners=False)
    [real] = check_parity(source, graph, side, gate)
    told = _told(kept, source)
    before, after = source.model.num_parameters(), count_parameters(graph)
    parts = " and ".join(
        f"{sum(numbers)} of {of * len(numbers)} {name}" for name, (numbers, of) in told.items()
    )
    finding = (
        f"{stage.writes} keeps {parts} of {stage.model} ({after / 1e6:.3g} of "
        f"{before / 1e6:.3g} million parameters); on {real.texts} {text.heldout_name} "
        f"{likeness(source, real)}"
    )
    text.context.note(finding)
    layers = {name: {"kept": numbers, "of": of} for name, (numbers, of) in told.items()}
    return {
        "pruned": {
            "importance": prune.importance,
            "layers": layers,
            "parameters": {"before": before, "after": after},
            "agreement": real.agreement,
            "texts": real.texts,
            "difference": real.difference,
        },
        "findings": [finding],
    }
