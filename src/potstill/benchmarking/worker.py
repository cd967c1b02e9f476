"""Time one model in this process: `python -m potstill.benchmarking.worker MODEL`.

MODEL is a model folder, timed in PyTorch, or an .onnx file, timed in onnxruntime without PyTorch.
The process reads one JSON command per line and answers with one JSON line; `process.py` starts it.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from potstill.storage.onnx_files import MAX_LENGTH, folder_of, is_onnx, open_session

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

WARM_UP_TEXTS = 16  # of a pass over texts: enough to set up what differs between lengths


def peak_memory_bytes() -> int | None:
    """Return the peak of this process's resident memory, in bytes; None on Windows."""
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


@dataclass(frozen=True)
class Opened:
    """Hold a model that is ready to be timed.

    Attributes:
        ready: The process's first answer.
        vocabulary, pad: The range of random tokens, and the one that is left out.
        inputs: Makes a model's inputs of ids and types [B x L] without padding.
        run: Runs one pass over them.
    """

    ready: dict[str, Any]
    vocabulary: int
    pad: int | None
    inputs: Callable[[np.ndarray, np.ndarray], Any]
    run: Callable[[Any], object]

    def random(self, batch: int, length: int, seed: int) -> Any:
        """Make inputs of random tokens."""
        ids_BL = _random_ids(self.vocabulary, self.pad, (batch, length), seed)
        return self.inputs(ids_BL, np.zeros_like(ids_BL))


def _answers(model: Path, threads: int, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    opened = (_graph if is_onnx(model) else _folder)(model, threads)
    texts: list[Any] = []
    yield opened.ready
    for line in lines:
        command = json.loads(line)
        match command["command"]:
            case "run":
                given = opened.random(command["batch"], command["length"], command["seed"])
                yield _timed(opened.run, [given] * command["repeats"], 1)
            case "texts":
                texts = _texts(opened, Path(command["file"]))
                yield {"texts": len(texts)}
            case "pass":
                yield _timed(opened.run, texts, min(len(texts), WARM_UP_TEXTS))
            case "memory":
                yield {"bytes": peak_memory_bytes()}
            case unknown:
                raise AssertionError(f"no command {unknown}")


def _folder(folder: Path, threads: int) -> Opened:
    import torch

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    auto, _, told = class_of(folder)  # so that load_s does not hold the imports
    start = time.perf_counter()
    model = _load(folder, auto, told)
    pooled = (folder / "modules.json").is_file()
    ready = {
        "load_s": time.perf_counter() - start,
        # parameters() yields tied weights once
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "positions": _positions(model),
    }
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters

    def inputs(ids_BL: np.ndarray, types_BL: np.ndarray) -> dict[str, torch.Tensor]:
        given = {"input_ids": ids_BL, "attention_mask": np.ones_like(ids_BL)}
        if takes_types and types_BL.any():
            given["token_type_ids"] = types_BL
        return {name: torch.from_numpy(value) for name, value in given.items()}

    def run(given: dict[str, torch.Tensor]) -> None:
        with torch.inference_mode():
            output = model(**given)
            if pooled:
                hidden_BLD = output.last_hidden_state
                weights_BL1 = given["attention_mask"].unsqueeze(-1).float()
                mean_BD = (hidden_BLD * weights_BL1).sum(1) / weights_BL1.sum(1)
                torch.nn.functional.normalize(mean_BD, dim=-1)

    return Opened(ready, model.config.vocab_size, model.config.pad_token_id, inputs, run)


def _graph(graph: Path, threads: int) -> Opened:
    import onnxruntime  # noqa: F401  (as above)

    config = json.loads((folder_of(graph) / "config.json").read_text(encoding="utf-8"))
    start = time.perf_counter()
    session = open_session(graph, threads)
    load_s = time.perf_counter() - start
    said = session.get_modelmeta().custom_metadata_map.get(MAX_LENGTH)
    ready = {  # no parameters: reading the file to count them would take memory
        "load_s": load_s,
        "positions": int(said) if said else config.get("max_position_embeddings"),
    }
    names = [found.name for found in session.get_inputs()]
    outputs = [found.name for found in session.get_outputs()]
    wanted = ["sentence_embedding"] if "sentence_embedding" in outputs else outputs

    def inputs(ids_BL: np.ndarray, types_BL: np.ndarray) -> dict[str, np.ndarray]:
        rest = {"attention_mask": np.ones_like(ids_BL), "token_type_ids": types_BL}
        given = {"input_ids": ids_BL, **rest}
        return {name: given[name] for name in names}

    def run(given: dict[str, np.ndarray]) -> None:
        session.run(wanted, given)

    return Opened(ready, config["vocab_size"], config.get("pad_token_id"), inputs, run)


def class_of(folder: Path) -> tuple[Any, PretrainedConfig, dict[str, bool]]:
    """Choose transformers' class for a folder's architecture, whose code is imported here.

    Returns:
        The class, the folder's config, and what else the class has to be told.

    Raises:
        ValueError: transformers does not know the architecture.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    tasks = ("SequenceClassification", "TokenClassification", "QuestionAnswering")
    heads = [f"For{task}" for task in ("MaskedLM", "PreTraining", *tasks)]
    name, bare = next(iter(config.architectures or []), ""), transformers.AutoModel
    head = next((head for head in heads if name.endswith(head)), "")
    auto: Any = getattr(transformers, f"AutoModel{head}")
    # where there is none, from_pretrained says so
    own = auto._model_mapping.get(type(config), transformers.PreTrainedModel)
    takes_pooler = auto is bare and "add_pooling_layer" in inspect.signature(own).parameters
    without = takes_pooler and not _has_pooler(folder)
    return auto, config, {"add_pooling_layer": False} if without else {}


def _has_pooler(folder: Path) -> bool:
    """Return whether the files hold a pooler, which transformers otherwise makes at random."""
    from safetensors import safe_open

    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as weights:
            if any("pooler." in name for name in weights.keys()):  # noqa: SIM118 - no mapping
                return True
    return False


def _load(folder: Path, auto: Any, told: dict[str, bool]) -> PreTrainedModel:
    import torch

    # float32 whatever the file holds: half precision is emulated, and slower, on most CPUs
    model: PreTrainedModel = auto.from_pretrained(
        folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, **told
    )
    model.train(False)
    return model


def _positions(model: PreTrainedModel) -> int | None:
    """Return the maximum sequence length; a table with a padding row starts after that row."""
    import torch

    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings) - reserved
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    return limit


def _random_ids(vocabulary: int, pad: int | None, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Draw tokens from the whole vocabulary but padding: int64 [B x L]."""
    ids_BL = np.random.default_rng(seed).integers(vocabulary - (pad is not None), size=shape)
    return ids_BL if pad is None else ids_BL + (ids_BL >= pad)


def _texts(opened: Opened, file: Path) -> list[Any]:
    """Read the parent's file (ids and types end to end, and lengths) as inputs of batch 1."""
    with np.load(file) as found:
        ends = np.cumsum(found["lengths"])[:-1]
        ids, types = (np.split(found[name].astype(np.int64), ends) for name in ("ids", "types"))
    return [opened.inputs(i[None], t[None]) for i, t in zip(ids, types, strict=True)]


def _timed(
    run: Callable[[Any], object], inputs: Sequence[Any], warm_up: int
) -> dict[str, list[float]]:
    """Return the seconds of each pass, after untimed passes over the first inputs."""
    for given in inputs[:warm_up]:  # another process has just had the caches
        run(given)
    wall_s, cpu_s = [], []
    for given in inputs:
        cpu, wall = time.process_time(), time.perf_counter()
        run(given)
        wall_s.append(time.perf_counter() - wall)
        cpu_s.append(time.process_time() - cpu)
    return {"wall_s": wall_s, "cpu_s": cpu_s}


def serve(answers: Iterator[dict[str, Any]]) -> None:
    """Print each answer as a line of JSON; whatever a library prints goes to standard error."""
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for answer in answers:
        print(json.dumps(answer), file=lines, flush=True)


def _child(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m potstill.benchmarking.worker")
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    serve(_answers(options.model, options.threads, iter(sys.stdin.readline, "")))


if __name__ == "__main__":
    _child(sys.argv[1:])
