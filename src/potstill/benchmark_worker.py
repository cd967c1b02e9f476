"""The process in which one model is timed: `python -m potstill.benchmark_worker FOLDER`.

It reads one JSON command a line and answers with one JSON line; see `potstill.benchmarking`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def _answers(folder: Path, threads: int, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    import torch
    from transformers import AutoModel  # noqa: F401  (so that load_s does not hold the import)

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    start = time.perf_counter()
    model = _load(folder)
    pooled = (folder / "modules.json").is_file()
    yield {
        "load_s": time.perf_counter() - start,
        # parameters() yields tied weights once
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "positions": _positions(model),
    }
    for line in lines:
        command = json.loads(line)
        if command["command"] == "memory":
            yield {"bytes": peak_memory_bytes()}
            continue
        ids_BL = _random_ids(model, command["batch"], command["length"], command["seed"])
        yield _timed(model, ids_BL, command["repeats"], pooled)


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


def _random_ids(model: PreTrainedModel, batch: int, length: int, seed: int) -> torch.Tensor:
    import torch

    pad = model.config.pad_token_id
    generator = torch.Generator().manual_seed(seed)
    size = model.config.vocab_size - (pad is not None)
    ids_BL = torch.randint(size, (batch, length), generator=generator)
    return ids_BL if pad is None else ids_BL + (ids_BL >= pad)  # every token but padding


def _timed(
    model: PreTrainedModel, ids_BL: torch.Tensor, repeats: int, pooled: bool
) -> dict[str, list[float]]:
    import torch

    mask_BL = torch.ones_like(ids_BL)
    wall_s, cpu_s = [], []
    with torch.inference_mode():
        for number in range(repeats + 1):
            cpu, wall = time.process_time(), time.perf_counter()
            output = model(input_ids=ids_BL, attention_mask=mask_BL)
            if pooled:
                hidden_BLD, weights_BL1 = output.last_hidden_state, mask_BL.unsqueeze(-1).float()
                mean_BD = (hidden_BLD * weights_BL1).sum(1) / weights_BL1.sum(1)
                torch.nn.functional.normalize(mean_BD, dim=-1)
            # The first pass of a block is untimed: another process has just had the caches.
            if number:
                wall_s.append(time.perf_counter() - wall)
                cpu_s.append(time.process_time() - cpu)
    return {"wall_s": wall_s, "cpu_s": cpu_s}


def _child(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m potstill.benchmark_worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    # Only answers may reach the parent: whatever a library prints goes to standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for answer in _answers(options.folder, options.threads, iter(sys.stdin.readline, "")):
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _child(sys.argv[1:])
