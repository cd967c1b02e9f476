"""The process in which one model is timed: `python -m potstill.benchmark_worker MODEL`.

MODEL is a model folder, timed in PyTorch, or an .onnx file, timed in onnxruntime without PyTorch.

It reads one JSON command a line and answers with one JSON line; see `potstill.benchmarking`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from potstill.onnx_files import (
    MAX_LENGTH,
    folder_of,
    is_onnx,
    open_session,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def peak_memory_bytes() -> int | None:
    """The most memory this process has had resident, in bytes; None where unknown (Windows)."""
    try:
        # On Linux ru_maxrss survives exec, so it starts at the peak of the parent; VmHWM does not.
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _answers(model: Path, threads: int, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    ready, inputs, run = (_graph if is_onnx(model) else _folder)(model, threads)
    yield ready
    for line in lines:
        command = json.loads(line)
        if command["command"] == "memory":
            yield {"bytes": peak_memory_bytes()}
            continue
        yield _timed(run, inputs(command["batch"], command["length"], command["seed"]), command)


# What a model says of itself; random inputs of a batch, a length and a seed; one pass over them.
_Opened = tuple[dict[str, Any], Callable[[int, int, int], Any], Callable[[Any], object]]


def _folder(folder: Path, threads: int) -> _Opened:
    import torch
    from transformers import AutoModel  # noqa: F401  (so that load_s does not hold the import)

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    start = time.perf_counter()
    model = _load(folder)
    pooled = (folder / "modules.json").is_file()
    ready = {
        "load_s": time.perf_counter() - start,
        # parameters() yields tied weights once
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "positions": _positions(model),
    }

    def inputs(batch: int, length: int, seed: int) -> torch.Tensor:
        config = model.config
        return torch.from_numpy(
            _random_ids(config.vocab_size, config.pad_token_id, batch, length, seed)
        )

    def run(ids_BL: torch.Tensor) -> None:
        mask_BL = torch.ones_like(ids_BL)
        with torch.inference_mode():
            output = model(input_ids=ids_BL, attention_mask=mask_BL)
            if pooled:
                hidden_BLD, weights_BL1 = output.last_hidden_state, mask_BL.unsqueeze(-1).float()
                mean_BD = (hidden_BLD * weights_BL1).sum(1) / weights_BL1.sum(1)
                torch.nn.functional.normalize(mean_BD, dim=-1)

    return ready, inputs, run


def _graph(graph: Path, threads: int) -> _Opened:
    import onnxruntime  # noqa: F401  (as above)

    config = json.loads((folder_of(graph) / "config.json").read_text(encoding="utf-8"))
    start = time.perf_counter()
    session = open_session(graph, threads)
    load_s = time.perf_counter() - start
    said = session.get_modelmeta().custom_metadata_map.get(MAX_LENGTH)
    ready = {  # the parent counts parameters: reading the file for that takes memory
        "load_s": load_s,
        "positions": int(said) if said else config.get("max_position_embeddings"),
    }
    names = [found.name for found in session.get_inputs()]
    outputs = [found.name for found in session.get_outputs()]
    # what the user of a sentence encoder asks for
    wanted = ["sentence_embedding"] if "sentence_embedding" in outputs else outputs

    def inputs(batch: int, length: int, seed: int) -> dict[str, np.ndarray]:
        pad = config.get("pad_token_id")
        ids_BL = _random_ids(config["vocab_size"], pad, batch, length, seed)
        rest = {"attention_mask": np.ones_like(ids_BL), "token_type_ids": np.zeros_like(ids_BL)}
        given = {"input_ids": ids_BL, **rest}
        return {name: given[name] for name in names}

    return ready, inputs, lambda given: session.run(wanted, given)


def _load(folder: Path) -> PreTrainedModel:
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    heads = {
        "ForMaskedLM": transformers.AutoModelForMaskedLM,
        "ForPreTraining": transformers.AutoModelForPreTraining,
        "ForSequenceClassification": transformers.AutoModelForSequenceClassification,
        "ForTokenClassification": transformers.AutoModelForTokenClassification,
        "ForQuestionAnswering": transformers.AutoModelForQuestionAnswering,
    }
    name = next(iter(config.architectures or []), "")
    found = [auto for suffix, auto in heads.items() if name.endswith(suffix)]
    # float32 whatever the file holds: half precision is emulated, and slower, on most CPUs
    model: PreTrainedModel = (found or [transformers.AutoModel])[0].from_pretrained(
        folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
    )
    model.train(False)
    return model


def _positions(model: PreTrainedModel) -> int | None:
    """Tokens that the model can read; a table with a padding row (RoBERTa) starts after it."""
    import torch

    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings) - reserved
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    return limit


def _random_ids(vocabulary: int, pad: int | None, batch: int, length: int, seed: int) -> np.ndarray:
    """Every token but padding may be among them: int64 [B x L]."""
    size = vocabulary - (pad is not None)
    ids_BL = np.random.default_rng(seed).integers(size, size=(batch, length))
    return ids_BL if pad is None else ids_BL + (ids_BL >= pad)


def _timed(
    run: Callable[[Any], object], inputs: Any, command: dict[str, Any]
) -> dict[str, list[float]]:
    wall_s, cpu_s = [], []
    for number in range(command["repeats"] + 1):
        cpu, wall = time.process_time(), time.perf_counter()
        run(inputs)
        # The first pass of a block is untimed: another process has just had the caches.
        if number:
            wall_s.append(time.perf_counter() - wall)
            cpu_s.append(time.process_time() - cpu)
    return {"wall_s": wall_s, "cpu_s": cpu_s}


def _child(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m potstill.benchmark_worker")
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    # Only answers may reach the parent: whatever a library prints goes to standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for answer in _answers(options.model, options.threads, iter(sys.stdin.readline, "")):
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _child(sys.argv[1:])
