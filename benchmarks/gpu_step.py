"""A step of masked-LM distillation on a GPU: tokens per second, and its share of the matrix peak.

    python benchmarks/gpu_step.py --output gpu_step.json

BERT-base with random weights to its half, 256 texts of 128 tokens, the triple loss at all tokens,
bfloat16, fused AdamW. Texts are full, so attention needs no mask and torch takes its flash kernel.
The step is `Trainee.forward` with backward, clipping and optimizer, eager and compiled. Operations
are those that torch's counter finds on the meta device, the vocabulary head included; the peak is a
matrix product of 8,192, timed here. Synchronizations of host and GPU inside a step are counted by
torch's own debug mode. Without a GPU only --tiny runs, on the CPU, to try the script.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import script
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM

from potstill import make_student
from potstill.data import Batch
from potstill.models import LoadedModel
from potstill.recipe import HardTargets, HiddenCosine, InBatch, SoftTargets, Task, Training
from potstill.storage import environment
from potstill.tasks.heads import Reading
from potstill.training import Trainee
from potstill.training.optimizer import make_optimizer
from potstill.training.precision import FORMATS
from potstill.training.teachers import LiveTeacher

OBJECTIVES = [SoftTargets(weight=5.0, temperature=2.0), HardTargets(weight=2.0), HiddenCosine()]
SETTINGS = Training(max_steps=1, learning_rate=1e-4)
MASKED = 0.15
TINY = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All that is printed.

    Raises:
        ValueError: there is no GPU.
    """
    if not options.tiny and not torch.cuda.is_available():
        raise ValueError("no GPU is found. Add --tiny to try the script on the CPU.")
    device = torch.device("cpu" if options.tiny else "cuda")
    texts, length = (4, 16) if options.tiny else (256, 128)
    torch.manual_seed(0)
    config = BertConfig(**({**TINY, "intermediate_size": 64} if options.tiny else {}))
    teacher = BertForMaskedLM(config).eval()
    student = make_student(teacher)
    operations = _operations(teacher, student, length) * texts * length
    peak = _peak(device, 256 if options.tiny else 8192)
    found = {}
    for name in ("eager",) if options.tiny else ("eager", "compiled"):  # a GPU's torch compiles
        step = _stepper(teacher, student, (texts, length), device, compiled=name == "compiled")
        seconds = [_timed(step, device) for _ in range(3 + options.rounds)][3:]
        per_second = [texts * length / each for each in seconds]
        found[name] = {
            "tokens_per_s": {"median": statistics.median(per_second), "rounds": per_second},
            "flops_per_s": operations / statistics.median(seconds),
            "share_of_peak": operations / statistics.median(seconds) / peak,
            "synchronizations": _synchronizations(step, device),
        }
    return {
        "batch": [texts, length],
        "rounds": options.rounds,
        "operations_per_step": operations,
        "peak_flops_per_s": peak,
        "ways": found,
        "environment": environment(),
    }


def _stepper(
    teacher: Any, student: Any, size: tuple[int, int], device: torch.device, *, compiled: bool
) -> Callable[[], None]:
    models = [
        LoadedModel(copy.deepcopy(model).to(device), None, Task.MASKED_LM, name)  # type: ignore[arg-type]
        for model, name in ((teacher, "teacher"), (student, "student"))
    ]
    reading = Reading.of(Task.MASKED_LM, OBJECTIVES, InBatch(), size[0])
    trainee = Trainee(models[1], [LiveTeacher(models[0], reading)], reading, 4096).to(device)
    if compiled:
        for each in models:
            each.model.base_model.compile()
    optimizer = make_optimizer(trainee, SETTINGS)
    batch = _batch(size, int(teacher.config.vocab_size)).to(device)
    counts = reading.counts(batch)
    scales = {o.kind: o.weight / counts[o.kind] for o in OBJECTIVES}
    parameters = list(trainee.parameters())
    trainee.model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with FORMATS["bf16"].applied(device):
            total, _ = trainee(batch, scales)
            total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, SETTINGS.clip or 5.0)
        optimizer.step()

    return step


def _batch(size: tuple[int, int], vocabulary: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocabulary, size, generator=generator)
    masked = torch.rand(size, generator=generator) < MASKED
    gold = ids.masked_fill(~masked, -100)
    return Batch(ids.masked_fill(masked, 4), torch.ones_like(ids), gold)


def _operations(teacher: Any, student: Any, length: int) -> float:
    """Count a step's floating-point operations for each token: one pass of one, three of other."""
    found = []
    for model in (teacher, student):
        meta = copy.deepcopy(model).to("meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            meta(input_ids=torch.zeros(1, length, dtype=torch.long, device="meta"))
        found.append(counter.get_total_flops() / length)
    return float(found[0] + 3 * found[1])


def _peak(device: torch.device, size: int) -> float:
    matrix = torch.ones(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / min(_timed(lambda: matrix @ matrix, device) for _ in range(10))


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    begin = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _synchronizations(step: Callable[[], None], device: torch.device) -> int | None:
    """Count where a step waits for the GPU; None without one."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)


def main() -> None:
    options = script.arguments(__doc__, rounds=20).parse_args()
    script.finish(measure(options), options.output)


if __name__ == "__main__":
    main()
