"""The stage that writes a model as an ONNX graph, and refuses one that answers otherwise."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from potstill.context import Context
from potstill.models import save_model
from potstill.onnx_files import GRAPH, ONNX, count_parameters, graph_files, weight_bytes
from potstill.onnx_graphs import OPSET, input_names, output_names, write_graph
from potstill.parity import check_parity
from potstill.recipe import Export
from potstill.weights import whole_or_gone

_WORK = f".{ONNX}.tmp"  # beside the folder onnx/, until the graph has passed the gate


def run_export(
    stage: Export, folder: Path, context: Context
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write `folder`/model, a whole model folder with onnx/model.onnx in it.

    Returns:
        The stage's result, and name -> path below the folder of the graph it wrote.

    Raises:
        ParityFailed: the graph answers otherwise than its source; nothing is left of it.
        ValueError: onnx is not installed, or can't say what the model does.
        OSError: too little disk.
    """
    source = context.open(stage.model)
    target, text = folder / "model", context.cut_as(stage.model).heldout_side
    _check_disk(folder, source.model.num_parameters())
    with whole_or_gone(target):
        context.reporter.say(f"writing {stage.writes} as an ONNX graph of opset {OPSET}")
        save_model(source, target)
        work = target / _WORK
        work.mkdir()
        graph = write_graph(source, work)
        corners = check_parity(source, graph, text, tolerance=stage.tolerance)
        os.rename(work, target / ONNX)
    graph = target / ONNX / GRAPH
    result = {
        "model": stage.model,
        "opset": OPSET,
        "inputs": input_names(source.model.config),
        "outputs": output_names(source.task),
        "files": [path.name for path in graph_files(graph)],
        "weight_bytes": weight_bytes(graph),
        "parameters": count_parameters(graph),
        "tolerance": stage.tolerance,
        "difference": max(max(corner.difference.values()) for corner in corners),
        "corners": [asdict(corner) for corner in corners],
    }
    return result, {stage.writes: f"model/{ONNX}/{GRAPH}"}


def _check_disk(folder: Path, parameters: int) -> None:
    """The folder's own weights, the exporter's graph and the finished one, in float32."""
    needed, free = 3 * 4 * parameters, shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"too little disk: the export needs about {needed / 1e6:,.0f} MB and "
            f"{free / 1e6:,.0f} MB are free",
            os.fspath(folder),
        )
