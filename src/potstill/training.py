"""The only training loop, on accelerate.

Exactness comes from pure functions: the order of examples is one of (seed, epoch), a mask one of
(seed, epoch, example), dropout one of (seed, step, micro-batch). So a resumed run, two processes,
or other micro-batches give the same numbers, and a checkpoint holds no random state.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs, PartialState
from torch import Tensor, nn

from potstill.checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from potstill.data import Batch, Tokens, collate, epoch_batches, plan_steps
from potstill.masking import Masker
from potstill.models import LoadedModel
from potstill.objectives import objective_sums
from potstill.precision import autocast_dtype
from potstill.recipe import Training
from potstill.runfolder import write_text
from potstill.teachers import LiveTeacher, Reading

# Masks of evaluation are those of an epoch that training never reaches.
EVALUATION_EPOCH = 2**31 - 1


class TrainingFailed(RuntimeError):
    """A run that can't go on; the message is one sentence."""


class Interrupted(Exception):
    """Training was asked to stop by a signal and has saved its work."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped at step {step}; the same command goes on from there")
        self.signum = signum


@dataclass(frozen=True)
class Progress:
    """One state of training, for bars: tokens, because batches differ in length."""

    step: int
    steps: int
    tokens: int
    total_tokens: int
    loss: float | None
    note: str = ""


@dataclass
class Result:
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    final: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    stopped_early: bool = False
    resumed_from: int | None = None


class Trainee(nn.Module):
    """Student and objectives in one forward, so that data-parallel gradients are the right ones.

    The teacher is not a submodule: it is neither trained, nor saved, nor broadcast.
    """

    def __init__(
        self, student: LoadedModel, teacher: LiveTeacher | None, reading: Reading, chunk_size: int
    ) -> None:
        super().__init__()
        self.model = student.model
        self._student = [student]
        self._teacher = [teacher]
        self.reading = reading
        self.chunk_size = chunk_size

    @property
    def teacher(self) -> LiveTeacher | None:
        return self._teacher[0]

    def forward(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor,
        gold_BL: Tensor,
        scales: Mapping[str, float],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted total (with gradient) and plain sums of the objectives over one micro-batch."""
        inputs = (input_ids_BL, attention_mask_BL, gold_BL)
        teacher = self.teacher.signals(*inputs) if self.teacher else None
        student = self.reading.signals(self._student[0], *inputs)
        return objective_sums(
            self.reading.objectives,
            student,
            teacher,
            self.reading.rows(attention_mask_BL, gold_BL),
            attention_mask_BL.bool(),
            scales,
            self.chunk_size,
        )


@dataclass
class _State:
    """What a checkpoint holds beside weights and optimizer."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    best_step: int = 0
    worse: int = 0  # evaluations since the best
    last: dict[str, Any] | None = field(default=None)


@dataclass(frozen=True)
class Job:
    """One training: what, on which text, how, and where it writes."""

    trainee: Trainee
    train: Tokens
    heldout: Tokens
    masker: Masker | None
    pad_id: int
    settings: Training
    seed: int
    folder: Path
    fingerprint: str  # a checkpoint of another one is not resumed
    progress: Callable[[Progress], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None


def wait_for_all() -> None:
    """Wait until every process of a distributed run is here."""
    # accelerate joins processes on CPUs only where told that it is CPUs. The others wait while the
    # first one evaluates: the usual ten minutes would end them.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(hours=24))
    state.wait_for_everyone()


def make_accelerator(settings: Training, folder: Path) -> Accelerator:
    """accelerate launches, places and synchronises; accumulation and normalisation are ours (hence
    1).
    """
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        gradient_accumulation_steps=1,
        log_with=list(settings.trackers) or None,
        project_dir=str(folder),
        # other processes wait while the first one evaluates or benchmarks
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=24))],
    )


def train(job: Job) -> Result:
    """Train until the first of the job's limits, early stop, or a signal; resumes where a
    checkpoint is.

    Raises:
        ValueError: no text to train on, or fewer micro-batches than processes.
        TrainingFailed: a loss or gradient that is not finite.
        Interrupted: SIGINT or SIGTERM came; the work is saved.
    """
    return _Loop(job).run()


class _Loop:
    def __init__(self, job: Job) -> None:
        self.job, self.settings = job, job.settings
        self.accelerator = make_accelerator(job.settings, job.folder)
        self.device = self.accelerator.device
        self.world = self.accelerator.num_processes
        self.rank = self.accelerator.process_index
        self.micro = self.settings.micro_batch_size or self.settings.batch_size
        self._check()
        self.steps, self.total_tokens = plan_steps(
            job.train.lengths,
            self.settings.batch_size,
            job.seed,
            epochs=self.settings.epochs,
            max_steps=self.settings.max_steps,
            max_tokens=self.settings.max_tokens,
        )
        self.batches_per_epoch = -(-len(job.train) // self.settings.batch_size)
        self.evaluate_every = self.settings.evaluate_every or max(self.steps // 10, 1)
        self.weights: dict[str, float] = {o.kind: o.weight for o in job.trainee.reading.objectives}
        self.dtype = autocast_dtype(self.settings.precision, self.device)
        self.state = _State()
        self.resumed_from: int | None = None
        self.log_path = job.folder / "log.jsonl"
        self._epoch: tuple[int, list[np.ndarray]] | None = None
        self._prepare()

    def _check(self) -> None:
        if len(self.job.train) == 0:
            raise ValueError("there is no text to train on")
        batches = -(-self.settings.batch_size // self.micro)
        if batches < self.world:
            raise ValueError(
                f"a batch of {self.settings.batch_size} is {batches} micro-batch(es) of "
                f"{self.micro} for {self.world} "
                "processes: set micro_batch_size to at most "
                f"{self.settings.batch_size // self.world}"
            )

    def _prepare(self) -> None:
        trainee, settings = self.job.trainee, self.settings
        trainee.to(self.device)
        if trainee.teacher:
            trainee.teacher.to(self.device)
        if settings.gradient_checkpointing:
            trainee.model.gradient_checkpointing_enable()
        if settings.compile:
            trainee.model.base_model.compile(dynamic=True)
        self.optimizer = _optimizer(trainee, settings)
        loaded = load_checkpoint(self.checkpoints, warn=self.job.say)
        if loaded is not None:
            self._restore(*loaded)
        self.module: Any = self.accelerator.prepare_model(trainee)
        if settings.trackers:
            self.accelerator.init_trackers(
                "potstill", config={"steps": self.steps, **_flat(settings.model_dump())}
            )

    # --- checkpoints ---

    @property
    def checkpoints(self) -> Path:
        return self.job.folder / "checkpoints"

    def _restore(
        self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]
    ) -> None:
        if state["fingerprint"] != self.job.fingerprint:
            self.job.say("the checkpoint is of another configuration: starting anew")
            return
        self.job.trainee.load_state_dict(tensors["model"], strict=False)
        unpack_optimizer(self.optimizer, tensors["optimizer"], state["optimizer"])
        self.state = _State(**state["loop"])
        self.resumed_from = step
        self.job.say(f"resuming at step {step} of {self.steps}")

    def _save(self, folder: Path, keep: int = 2) -> None:
        if not self.accelerator.is_main_process:
            return
        optimizer, optimizer_state = pack_optimizer(self.optimizer)
        save_checkpoint(
            folder,
            self.state.step,
            {"model": _own_state(self.job.trainee), "optimizer": optimizer},
            {
                "fingerprint": self.job.fingerprint,
                "optimizer": optimizer_state,
                "loop": asdict(self.state),
            },
            keep=keep,
        )

    # --- the loop ---

    def run(self) -> Result:
        self._begin_log()
        self._log(
            "resume" if self.resumed_from is not None else "start",
            steps=self.steps,
            tokens=self.total_tokens,
        )
        stopped = self.state.worse >= (self.settings.patience or math.inf)
        self._bar(None)
        with _signals() as asked, ThreadPoolExecutor(max_workers=1) as pool:
            begin, self._base_seconds = time.perf_counter(), self.state.seconds
            saved_at = begin
            step = self.state.step
            ahead = pool.submit(self._micro_batches, step)
            while step < self.steps and not stopped:
                micro_batches = ahead.result()
                if step + 1 < self.steps:
                    ahead = pool.submit(self._micro_batches, step + 1)
                self._step(step, micro_batches)
                step += 1
                self.state.step, self.state.seconds = (
                    step,
                    self._base_seconds + time.perf_counter() - begin,
                )
                if len(self.job.heldout) and (
                    step % self.evaluate_every == 0 or step == self.steps
                ):
                    stopped = self._evaluate_and_judge()
                stop_signal = self._agree(asked[0])
                if stop_signal and step < self.steps:
                    self._save(self.checkpoints)
                    self._log("interrupted", step=step)
                    raise Interrupted(stop_signal, step)
                if self._agree(int(self._due(step, saved_at))):
                    self._save(self.checkpoints)
                    saved_at = time.perf_counter()
        return self._finish(stopped)

    def _due(self, step: int, saved_at: float) -> bool:
        every = self.settings.checkpoint_steps
        old = time.perf_counter() - saved_at > 60 * self.settings.checkpoint_minutes
        return (every is not None and step % every == 0) or old

    def _step(self, step: int, micro_batches: list[tuple[int, Batch]]) -> None:
        reading = self.job.trainee.reading
        counts = dict.fromkeys(self.weights, 0)
        tokens = 0
        for number, batch in micro_batches:
            if number < 0:
                continue
            tokens += int(batch.attention_mask_BL.sum())
            for kind, count in reading.counts(batch.attention_mask_BL, batch.gold_BL).items():
                counts[kind] += count
        totals = self._sum([*counts.values(), tokens])
        counts = {kind: max(int(count), 1) for kind, count in zip(counts, totals, strict=False)}
        # DDP averages over processes: multiply what it will divide.
        scales = {kind: self.world * weight / counts[kind] for kind, weight in self.weights.items()}
        sums = self._forward_backward(step, micro_batches, scales)
        components = {
            kind: value / counts[kind]
            for kind, value in zip(self.weights, self._sum(sums), strict=True)
        }
        loss = sum(self.weights[kind] * value for kind, value in components.items())
        grad_norm = self._clip()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainingFailed(
                f"the {'loss' if not math.isfinite(loss) else 'gradient'} is not finite at step "
                f"{step + 1}: "
                "lower learning_rate, or set precision=fp32; the last good checkpoint is kept"
            )
        rate = self.settings.learning_rate * _schedule(step, self.steps, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.state.tokens += int(totals[-1])
        self.state.last = {"loss": loss, "components": components}
        self._bar(loss, step + 1)
        if (step + 1) % self.settings.log_every == 0 or step in (0, self.steps - 1):
            self._log_step(step + 1, rate, grad_norm)

    def _forward_backward(
        self, step: int, micro_batches: list[tuple[int, Batch]], scales: Mapping[str, float]
    ) -> list[float]:
        trainee = self.job.trainee
        trainee.model.train(self.settings.dropout)
        self.optimizer.zero_grad(set_to_none=True)
        sums = dict.fromkeys(self.weights, 0.0)
        for position, (number, batch) in enumerate(micro_batches):
            last = position == len(micro_batches) - 1
            torch.manual_seed(_hash(self.job.seed, step, number))
            idle = number < 0  # another process has one micro-batch more: take part, add nothing
            with nullcontext() if last else self.accelerator.no_sync(self.module):
                total, parts = self._forward(batch, dict.fromkeys(scales, 0.0) if idle else scales)
                self.accelerator.backward(total)
            for kind, value in parts.items():
                sums[kind] += 0.0 if idle else float(value)
        return list(sums.values())

    def _forward(
        self, batch: Batch, scales: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch = batch.to(self.device)
        with ExitStack() as stack:
            if self.dtype is not None:
                stack.enter_context(torch.autocast(self.device.type, self.dtype))
            result: tuple[Tensor, dict[str, Tensor]] = self.module(
                batch.input_ids_BL, batch.attention_mask_BL, batch.gold_BL, dict(scales)
            )
        return result

    def _clip(self) -> float:
        parameters = [p for p in self.job.trainee.parameters() if p.grad is not None]
        limit = self.settings.clip if self.settings.clip is not None else math.inf
        return float(torch.nn.utils.clip_grad_norm_(parameters, limit))

    # --- batches ---

    def _micro_batches(self, step: int) -> list[tuple[int, Batch]]:
        """This process's micro-batches of a step, numbered within it; -1 marks one that only keeps
        step.
        """
        epoch, within = divmod(step, self.batches_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            batches = epoch_batches(
                self.job.train.lengths, self.settings.batch_size, self.job.seed, epoch
            )
            self._epoch = (epoch, batches)
        return self._own(self._epoch[1][within], self.job.train, epoch)

    def _own(self, indices: np.ndarray, tokens: Tokens, epoch: int) -> list[tuple[int, Batch]]:
        parts = [indices[i : i + self.micro] for i in range(0, len(indices), self.micro)]
        rounds = -(-len(parts) // self.world)
        own = []
        for turn in range(rounds):
            number = turn * self.world + self.rank
            part = parts[number] if number < len(parts) else parts[0]
            batch = collate(tokens, part, self.job.pad_id, self.job.masker, self.job.seed, epoch)
            own.append((number if number < len(parts) else -1, batch))
        return own

    # --- evaluation ---

    def evaluate(self) -> dict[str, Any]:
        """Mean losses on held-out text, with masks that never change."""
        trainee, reading = self.job.trainee, self.job.trainee.reading
        trainee.model.eval()
        heldout = self.job.heldout
        # Spread over the held-out side, in groups of similar length as in training.
        chosen = np.linspace(
            0, len(heldout) - 1, min(self.settings.evaluate_sequences, len(heldout))
        ).astype(int)
        chosen = chosen[np.argsort(heldout.lengths[chosen], kind="stable")]
        sums, counts = dict.fromkeys(self.weights, 0.0), dict.fromkeys(self.weights, 0)
        with torch.no_grad():
            for start in range(0, len(chosen), self.micro * self.world):
                part = chosen[start : start + self.micro * self.world]
                for number, batch in self._own(part, heldout, EVALUATION_EPOCH):
                    if number < 0:
                        continue
                    batch = batch.to(self.device)
                    _, parts = trainee(
                        batch.input_ids_BL,
                        batch.attention_mask_BL,
                        batch.gold_BL,
                        dict.fromkeys(sums, 0.0),
                    )
                    for kind, count in reading.counts(
                        batch.attention_mask_BL, batch.gold_BL
                    ).items():
                        counts[kind] += count
                        sums[kind] += float(parts[kind])
        totals = self._sum([*sums.values(), *counts.values()])
        means = {k: totals[i] / max(totals[len(sums) + i], 1) for i, k in enumerate(sums)}
        return {"loss": sum(self.weights[k] * v for k, v in means.items()), "components": means}

    def _evaluate_and_judge(self) -> bool:
        """Evaluate, keep the best, and say whether patience has ended."""
        result, state = self.evaluate(), self.state
        self._log("evaluate", step=state.step, **result)
        self._track({"heldout/loss": result["loss"]})
        if state.best_loss is None or result["loss"] < state.best_loss:
            state.best_loss, state.best_step, state.worse = result["loss"], state.step, 0
            if self.settings.keep == "best":
                self._save(self.job.folder / "checkpoints-best", keep=1)
        else:
            state.worse += 1
        return self.settings.patience is not None and state.worse >= self.settings.patience

    def _finish(self, stopped: bool) -> Result:
        state = self.state
        self.accelerator.wait_for_everyone()
        if self.settings.keep == "best" and state.best_step not in (0, state.step):
            loaded = load_checkpoint(self.job.folder / "checkpoints-best", warn=self.job.say)
            if loaded is not None:
                self.job.trainee.load_state_dict(loaded[1]["model"], strict=False)
                self.job.say(
                    f"kept the weights of step {state.best_step}, the best on held-out text"
                )
        best = (
            None if state.best_loss is None else {"loss": state.best_loss, "step": state.best_step}
        )
        self._log("end", step=state.step, best=best, stopped_early=stopped)
        if self.settings.trackers:
            self.accelerator.end_training()
        self.job.trainee.model.eval()
        return Result(
            state.step, state.tokens, state.seconds, state.last, best, stopped, self.resumed_from
        )

    # --- small things ---

    def _sum(self, values: list[float] | list[int]) -> list[float]:
        """Sums over processes, in float64."""
        if self.world == 1:
            return [float(value) for value in values]
        device = "cpu" if self.device.type == "mps" else self.device
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(tensor)
        return [float(value) for value in tensor]

    def _agree(self, value: int) -> int:
        """The largest value of all processes, so that all leave the loop together."""
        if self.world == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
        return int(tensor)

    def _bar(self, loss: float | None, step: int | None = None) -> None:
        state = self.state
        self.job.progress(
            Progress(
                state.step if step is None else step,
                self.steps,
                state.tokens,
                self.total_tokens,
                loss,
            )
        )

    def _log_step(self, step: int, rate: float, grad_norm: float) -> None:
        last = self.state.last or {}
        self._log(
            "train",
            step=step,
            epoch=round(step / self.batches_per_epoch, 4),
            **last,
            learning_rate=rate,
            grad_norm=grad_norm,
            tokens=self.state.tokens,
            seconds=round(self.state.seconds, 2),
        )
        self._track(
            {
                "train/loss": last["loss"],
                "train/learning_rate": rate,
                **_flat(last["components"], "train/"),
            }
        )

    def _track(self, values: dict[str, float]) -> None:
        if self.settings.trackers:
            self.accelerator.log(values, step=self.state.step)

    def _begin_log(self) -> None:
        """Drop the lines of steps that will be done (again): the log tells of one training."""
        if not self.accelerator.is_main_process or not self.log_path.is_file():
            return
        lines = self.log_path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if self.resumed_from is not None and self._is_past(line)]
        write_text(self.log_path, "".join(kept))

    def _is_past(self, line: str) -> bool:
        try:
            event = json.loads(line)
        except ValueError:  # cut off when the process was killed
            return False
        return event["event"] in ("start", "resume") or event.get("step", 0) <= self.state.step

    def _log(self, event: str, **values: Any) -> None:
        if self.accelerator.is_main_process:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, **values}) + "\n")


def _optimizer(trainee: Trainee, settings: Training) -> torch.optim.Optimizer:
    """AdamW; weight decay leaves out biases and layer norms, as usual."""
    trained = [p for p in trainee.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=True
    )


def _schedule(step: int, steps: int, warmup: float) -> float:
    """Factor of the learning rate: linear from 0 to 1 over the warm-up, then linear to 0 at the
    end.
    """
    warm = math.ceil(warmup * steps)
    if step < warm:
        return (step + 1) / warm
    return (steps - step) / max(steps - warm, 1)


def _own_state(trainee: Trainee) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once."""
    named = dict(trainee.named_parameters()) | dict(trainee.named_buffers())
    return {name: value.detach() for name, value in named.items()}


def _hash(*values: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(values).encode(), digest_size=7).digest())


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {
        f"{prefix}{k}": v if isinstance(v, (int, float, bool)) else str(v)
        for k, v in values.items()
    }


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM until the step is done; a second one acts at once."""
    asked = [0]
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _: Any) -> None:
        asked[0] = number
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
