"""Speed and memory of a step of masked-LM distillation, Potstill's against a plain one's.

    python benchmarks/distill_step.py --threads 2 --output distill_step.json

The plain step is the reference implementation's way in plain PyTorch: whole logits
[16 x 128 x vocabulary] of teacher and student, every loss on them, autograd for everything.
Potstill's step is `Trainee.forward` with the loop's optimizer and clipping. Both have the same
models (BERT-base with random weights, to a 6-layer DistilBertForMaskedLM), the same batches, the
same dropout and the same AdamW settings. Before anything is timed, losses and gradient norm of the
first batch must agree.

Each variant is a child process, whose peak memory is its own. The parent makes them step in turn,
so that none computes while another is timed; all four stay in memory, those at rest with weights,
gradients and optimizer state. Full size needs about 12 GB and, on two idle cores, a minute a round.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import psutil

from potstill.benchmarking.process import Child
from potstill.benchmarking.rounds import order
from potstill.benchmarking.worker import peak_memory_bytes, serve
from potstill.recipe import HardTargets, HiddenCosine, SoftTargets, Task, Training
from potstill.storage import environment
from potstill.storage.files import write_text

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from potstill.training import Trainee

Positions = Literal["all", "masked"]
# Weighted total (with gradient) and the components' unweighted means.
Losses = Callable[["Batch"], tuple["Tensor", dict[str, float]]]

WAYS = ("plain", "potstill")
POSITIONS: tuple[Positions, ...] = ("all", "masked")
VARIANTS = tuple(f"{way}-{positions}" for positions in POSITIONS for way in WAYS)
SOFT, HARD, COSINE = 5.0, 2.0, 1.0  # weights of the released DistilBERT
TEMPERATURE = 2.0
MASKED = 0.15
SEED = 0
TOLERANCE = 1e-4  # relative: of loss, each component and gradient norm on the first batch
FLOAT = 4  # bytes
# Learning rate, betas, eps, weight decay and clipping are the recipe's defaults, in both ways.
SETTINGS = Training(max_steps=1)


@dataclass(frozen=True)
class Shape:
    """Sizes of the models and of a batch."""

    config: Mapping[str, float]  # changes to transformers' BertConfig(), which is BERT-base
    texts: int
    tokens: int  # of every text: no padding
    mask_id: int
    first_id: int  # random tokens are drawn from here to the end of the vocabulary
    chunk_size: int


FULL = Shape({}, 16, 128, mask_id=103, first_id=999, chunk_size=SETTINGS.chunk_size)
TINY = Shape(
    {
        "vocab_size": 200,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 32,
        "initializer_range": 0.2,  # or teacher and student hardly differ, but for rounding
    },
    texts=3,
    tokens=20,
    mask_id=4,
    first_id=5,
    chunk_size=7,  # several chunks, the last one short
)


# --- the parent's side ----------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All that is printed.

    Raises:
        ValueError: a plain and a Potstill step that don't compute the same.
        RuntimeError: a child process that died.
    """
    shape = TINY if options.tiny else FULL
    with contextlib.ExitStack() as stack:
        # One after another, so that no model is made while another computes.
        children: dict[str, Child] = {}
        for name in VARIANTS:
            children[name] = stack.enter_context(_Variant(name, options))
            _say(f"{name}: ready, loss {children[name].ready['first']['loss']:.6f}")
        agreement = {
            positions: agree(*(children[f"{way}-{positions}"].ready["first"] for way in WAYS))
            for positions in POSITIONS
        }
        steps = _rounds(children, options.rounds)
        memory = {name: child.ask("memory") for name, child in children.items()}
        ready = {name: child.ready for name, child in children.items()}
    parameters = ready[VARIANTS[0]]["parameters"]
    floor = floor_bytes(parameters["teacher"], parameters["student"])
    tokens = shape.texts * shape.tokens
    variants = {
        name: _summary(steps[name], memory[name], ready[name], tokens, floor["total"])
        for name in VARIANTS
    }
    return {
        "batch": {"texts": shape.texts, "tokens": shape.tokens, "masked": MASKED},
        "rounds": options.rounds,
        "threads": options.threads,
        "chunk_size": ready["potstill-all"]["chunk_size"],
        "dtype": "float32",
        "weights": {"soft_targets": SOFT, "hard_targets": HARD, "hidden_cosine": COSINE},
        "temperature": TEMPERATURE,
        "parameters": parameters,
        "floor_bytes": floor,
        "agreement": agreement,
        "variants": variants,
        "ratios": {
            **{p: _ratio(variants[f"plain-{p}"], variants[f"potstill-{p}"]) for p in POSITIONS},
            # what leaving the other tokens out is worth: another objective than the plain step's
            "masked_beside_all": _ratio(variants["plain-all"], variants["potstill-masked"]),
        },
        "environment": ready[VARIANTS[0]]["environment"],
    }


def agree(plain: Mapping[str, Any], potstill: Mapping[str, Any]) -> dict[str, Any]:
    """Relative differences of what two ways found on the same batch without dropout.

    Args:
        plain, potstill: `loss`, `grad_norm` and `components` (kind -> mean).

    Raises:
        ValueError: one of them above TOLERANCE, or not a number: a faster step that computes
            something else is worth nothing.
    """
    pairs = {
        "loss": (plain["loss"], potstill["loss"]),
        "grad_norm": (plain["grad_norm"], potstill["grad_norm"]),
        **{
            kind: (value, potstill["components"][kind])
            for kind, value in plain["components"].items()
        },
    }
    differences = {
        name: abs(theirs - ours) / max(abs(theirs), 1e-12) for name, (theirs, ours) in pairs.items()
    }
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            theirs, ours = pairs[name]
            raise ValueError(
                f"{name} of the plain step is {theirs:.8g} and of Potstill's {ours:.8g}: "
                f"they differ by {difference:.2g}, {TOLERANCE:g} is allowed"
            )
    return {
        "plain": dict(plain),
        "potstill": dict(potstill),
        "relative_difference": differences,
        "largest": max(differences.values()),
        "tolerance": TOLERANCE,
    }


def floor_bytes(teacher: int, student: int) -> dict[str, int]:
    """What no way of training with AdamW in float32 can do without, from numbers of parameters."""
    parts = {
        "teacher_weights": FLOAT * teacher,
        "student_weights": FLOAT * student,
        "student_gradients": FLOAT * student,
        "student_optimizer": 2 * FLOAT * student,  # AdamW's two moments
    }
    return {**parts, "total": sum(parts.values())}


def _rounds(children: Mapping[str, Child], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """A warm-up step each, then a step of every variant per round, in the benchmark's order."""
    names = list(children)
    for name in names:
        _say(f"warm-up, {name}: {children[name].ask('step')['wall_s']:.2f} s")
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in order(names, number):
            answer = children[name].ask("step")
            steps[name].append(answer)
            _say(f"round {number + 1} of {rounds}, {name}: {answer['wall_s']:.2f} s")
    return steps


def _summary(
    steps: Sequence[Mapping[str, float]],
    memory: Mapping[str, int],
    ready: Mapping[str, Any],
    tokens: int,
    floor: int,
) -> dict[str, Any]:
    per_second = [tokens / step["wall_s"] for step in steps]
    return {
        "tokens_per_s": {
            "median": round(statistics.median(per_second), 3),
            "rounds": [round(value, 3) for value in per_second],
        },
        "step_wall_s": [round(step["wall_s"], 6) for step in steps],
        # less than wall time x threads: threads waited, or other work had the processor
        "step_cpu_s": [round(step["cpu_s"], 6) for step in steps],
        "losses": [step["loss"] for step in steps],  # with dropout
        "peak_memory_bytes": memory["peak"],
        "peak_over_floor": round(memory["peak"] / floor, 4),
        "idle_memory_bytes": memory["idle"],
        "memory_before_models_bytes": ready["before_models_bytes"],
        "peak_after_loading_bytes": ready["after_loading_bytes"],
    }


def _ratio(plain: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    pairs = zip(plain["step_wall_s"], ours["step_wall_s"], strict=True)
    ratios = [slow / fast for slow, fast in pairs]
    return {
        "tokens_per_s": {  # one ratio a round
            "median": round(statistics.median(ratios), 4),
            "min": round(min(ratios), 4),
            "max": round(max(ratios), 4),
        },
        "peak_memory": round(ours["peak_memory_bytes"] / plain["peak_memory_bytes"], 4),
    }


class _Variant(Child):
    """One variant in its own process."""

    advice = "Use a machine with more memory."

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        super().__init__(name, Path(__file__), options.threads)
        chunks = options.chunk_size is not None
        self._options = ["--chunk-size", str(options.chunk_size)] if chunks else []
        self._options += ["--tiny"] if options.tiny else []

    @property
    def arguments(self) -> list[str]:
        shared = ["--child", self.name, "--threads", str(self.threads)]
        return [str(self.folder), *shared, *self._options]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- the child's side -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Random tokens, none of them padding."""

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    gold_BL: Tensor

    @staticmethod
    def random(shape: Shape, vocabulary: int, number: int) -> Batch:
        """Batch `number`: the same in every process. The same share of each text is masked."""
        import torch

        generator = torch.Generator().manual_seed(SEED * 1_000_003 + number)
        size = (shape.texts, shape.tokens)
        ids_BL = torch.randint(shape.first_id, vocabulary, size, generator=generator)
        chosen_BK = torch.rand(size, generator=generator).topk(round(MASKED * shape.tokens)).indices
        masked_BL = torch.zeros(size, dtype=torch.bool).scatter_(1, chosen_BK, True)
        return Batch(
            ids_BL.masked_fill(masked_BL, shape.mask_id),
            torch.ones_like(ids_BL),
            ids_BL.masked_fill(~masked_BL, -100),
        )


def plain_losses(
    student: PreTrainedModel, teacher: PreTrainedModel, positions: Positions
) -> Losses:
    """The objective on whole logits."""
    import torch
    from torch.nn import functional as F

    def losses(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        inputs: Any = {
            "input_ids": batch.input_ids_BL,
            "attention_mask": batch.attention_mask_BL,
            "output_hidden_states": True,
        }
        with torch.no_grad():
            theirs = teacher(**inputs)
        ours = student(**inputs)
        real_BL = batch.attention_mask_BL.bool()
        soft_BL = real_BL if positions == "all" else batch.gold_BL != -100
        soft = TEMPERATURE**2 * F.kl_div(
            F.log_softmax(ours.logits[soft_BL] / TEMPERATURE, dim=-1),
            F.softmax(theirs.logits[soft_BL] / TEMPERATURE, dim=-1),
            reduction="batchmean",
        )
        hard = F.cross_entropy(
            ours.logits.flatten(0, 1), batch.gold_BL.flatten(), ignore_index=-100
        )
        cosine_K = F.cosine_similarity(
            ours.hidden_states[-1][real_BL], theirs.hidden_states[-1][real_BL], dim=-1
        )
        parts = {"soft_targets": soft, "hard_targets": hard, "hidden_cosine": 1 - cosine_K.mean()}
        total = SOFT * soft + HARD * hard + COSINE * parts["hidden_cosine"]
        return total, {kind: float(value.detach()) for kind, value in parts.items()}

    return losses


def potstill_losses(trainee: Trainee) -> Losses:
    """The objective as the training loop computes it, with one micro-batch a step."""

    from potstill.data import batches

    def losses(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        inputs = batches.Batch(batch.input_ids_BL, batch.attention_mask_BL, batch.gold_BL)
        counts = trainee.reading.counts(inputs)
        scales = {o.kind: o.weight / counts[o.kind] for o in trainee.reading.objectives}
        total, sums = trainee(inputs, scales)
        return total, {kind: float(value) / counts[kind] for kind, value in sums.items()}

    return losses


class _Stepper:
    """Models, optimizer and losses of one variant."""

    def __init__(self, name: str, shape: Shape, chunk_size: int) -> None:
        import torch
        from transformers import BertConfig, BertForMaskedLM

        from potstill import make_student

        way, positions = name.split("-")
        torch.manual_seed(SEED)
        self.shape = shape
        self.config = BertConfig(**cast(Mapping[str, Any], shape.config))
        self.teacher = BertForMaskedLM(self.config).train(False).requires_grad_(False)
        self.student = make_student(self.teacher)
        of = _plain if way == "plain" else _potstill
        self.losses, self.optimizer = of(
            self.student, self.teacher, cast(Positions, positions), chunk_size
        )

    def first(self) -> dict[str, Any]:
        """Loss and gradient of the first batch without dropout; no weight changes."""
        self.student.train(False)
        loss, components, grad_norm = self._forward_backward(0)
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": loss, "components": components, "grad_norm": grad_norm}

    def step(self, number: int) -> dict[str, float]:
        """One timed optimizer step."""
        import torch

        self.student.train()
        torch.manual_seed(SEED + number)  # the dropout of a step is the same in all variants
        cpu, wall = time.process_time(), time.perf_counter()
        loss, _, _ = self._forward_backward(number)
        self.optimizer.step()
        return {
            "wall_s": time.perf_counter() - wall,
            "cpu_s": time.process_time() - cpu,
            "loss": loss,
        }

    def _forward_backward(self, number: int) -> tuple[float, dict[str, float], float]:
        import torch

        self.optimizer.zero_grad(set_to_none=True)
        total, components = self.losses(Batch.random(self.shape, self.config.vocab_size, number))
        torch.autograd.backward(total)
        parameters = [p for p in self.student.parameters() if p.grad is not None]
        assert SETTINGS.clip is not None
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, SETTINGS.clip)
        return float(total.detach()), components, float(grad_norm)


def _plain(
    student: PreTrainedModel, teacher: PreTrainedModel, positions: Positions, _: int
) -> tuple[Losses, torch.optim.Optimizer]:
    import torch

    optimizer = torch.optim.AdamW(  # as it comes: torch chooses the implementation
        student.parameters(),
        lr=SETTINGS.learning_rate,
        betas=SETTINGS.betas,
        eps=SETTINGS.eps,
        weight_decay=SETTINGS.weight_decay,
    )
    return plain_losses(student, teacher, positions), optimizer


def _potstill(
    student: PreTrainedModel, teacher: PreTrainedModel, positions: Positions, chunk_size: int
) -> tuple[Losses, torch.optim.Optimizer]:
    from potstill.models import LoadedModel
    from potstill.recipe import InBatch
    from potstill.tasks.heads import Reading
    from potstill.training import Trainee
    from potstill.training.optimizer import make_optimizer
    from potstill.training.teachers import LiveTeacher

    objectives = (
        SoftTargets(weight=SOFT, temperature=TEMPERATURE, positions=positions),
        HardTargets(weight=HARD),
        HiddenCosine(weight=COSINE),
    )
    reading = Reading.of(Task.MASKED_LM, objectives, InBatch(), batch_size=1)
    no_tokenizer: Any = None  # batches are token ids: nothing asks for it
    live = LiveTeacher(LoadedModel(teacher, no_tokenizer, Task.MASKED_LM, "teacher"), reading)
    loaded = LoadedModel(student, no_tokenizer, Task.MASKED_LM, "student")
    trainee = Trainee(loaded, [live], reading, chunk_size)
    return potstill_losses(trainee), make_optimizer(trainee, SETTINGS)


def _answers(options: argparse.Namespace, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    import torch
    import transformers  # noqa: F401  (so that the memory before models holds it)

    torch.set_num_threads(options.threads)
    shape = TINY if options.tiny else FULL
    chunk_size = shape.chunk_size if options.chunk_size is None else options.chunk_size
    before = peak_memory_bytes()
    stepper = _Stepper(options.child, shape, chunk_size)
    loaded = peak_memory_bytes()
    yield {
        "first": stepper.first(),
        "parameters": {
            "teacher": sum(p.numel() for p in stepper.teacher.parameters()),
            "student": sum(p.numel() for p in stepper.student.parameters()),
        },
        "chunk_size": chunk_size,
        "before_models_bytes": before,
        "after_loading_bytes": loaded,
        "environment": environment(),
    }
    numbers = itertools.count(1)
    for line in lines:
        if json.loads(line)["command"] == "step":
            yield stepper.step(next(numbers))
        else:
            yield {"peak": peak_memory_bytes(), "idle": psutil.Process().memory_info().rss}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=_at_least_one, default=3)
    parser.add_argument("--threads", type=_at_least_one, default=2)
    parser.add_argument(
        "--chunk-size", type=_at_least_one, help="rows of logits at a time (Potstill)"
    )
    parser.add_argument("--output", type=Path, help="also write the JSON here, indented")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: tries the script itself")
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        serve(_answers(options, iter(sys.stdin.readline, "")))
        return
    try:
        result = measure(options)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    if options.output is not None:
        write_text(options.output, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


if __name__ == "__main__":
    main(sys.argv[1:])
