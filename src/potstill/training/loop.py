"""The only training loop, on accelerate.

Exactness comes from pure functions: the order of examples is one of (seed, epoch), a mask one of
(seed, epoch, example), dropout one of (seed, step, micro-batch). So a resumed run, two processes,
or other micro-batches give the same numbers, and a checkpoint holds no random state.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.data import Batch
from potstill.data.batches import MicroBatches, plan_steps
from potstill.data.masking import EVALUATION_EPOCH
from potstill.errors import Interrupted, TrainingFailed
from potstill.models.devices import autocast_dtype
from potstill.models.finite import not_finite, some_not_finite
from potstill.objectives import temperature_at
from potstill.recipe import SoftTargets, Task
from potstill.training.checkpoint import load_checkpoint, save_checkpoint
from potstill.training.distributed import (
    check_processes,
    largest_of_all,
    make_accelerator,
    sum_of_all,
)
from potstill.training.interruption import stop_signals
from potstill.training.job import Job, Progress, Result, State
from potstill.training.log import TrainingLog
from potstill.training.optimizer import make_optimizer, pack_optimizer, schedule, unpack_optimizer
from potstill.training.trainee import Trainee


def train(job: Job) -> Result:
    """Train until the first of the job's limits, an early stop or a signal.

    Where the job's folder holds a checkpoint of the same fingerprint, training goes on from it.

    Raises:
        ValueError: no text to train on, or fewer micro-batches than processes.
        TrainingFailed: a loss, a gradient or weights that are not finite.
        Interrupted: SIGINT or SIGTERM came; the work is saved.
    """
    return _Loop(job).run()


class _Loop:
    def __init__(self, job: Job) -> None:
        self.job, self.settings = job, job.settings
        self.accelerator = make_accelerator(job.settings, job.folder)
        self.device = self.accelerator.device
        self.world = self.accelerator.num_processes
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
        self.state = State()
        self.resumed_from: int | None = None
        self.saved: int | None = None  # the step of the newest checkpoint
        self.log = TrainingLog(
            self.accelerator, job.folder / "log.jsonl", bool(self.settings.trackers)
        )
        self.batches = MicroBatches(
            self.settings.batch_size,
            self.settings.micro_batch_size or self.settings.batch_size,
            pad_id=job.pad_id,
            masker=job.masker,
            seed=job.seed,
            rank=self.accelerator.process_index,
            world=self.world,
        )
        self._prepare()

    def _check(self) -> None:
        if len(self.job.train) == 0:
            raise ValueError("there is no text to train on")
        reading = self.job.trainee.reading
        group = reading.group if reading.task == Task.SENTENCE_EMBEDDING else None
        check_processes(self.settings, self.world, group)

    def _prepare(self) -> None:
        trainee, settings = self.job.trainee, self.settings
        trainee.to(self.device)
        for teacher in trainee.teachers:
            teacher.to(self.device)
        if settings.gradient_checkpointing:
            with warnings.catch_warnings():
                # the name changes in transformers 6, of which a run's user need not hear
                warnings.simplefilter("ignore", FutureWarning)
                trainee.model.gradient_checkpointing_enable()
        if settings.compile:
            trainee.model.base_model.compile(dynamic=True)
        self.optimizer = make_optimizer(trainee, settings)
        loaded = load_checkpoint(self.checkpoints, warn=self.job.say)
        if loaded is not None:
            self._restore(*loaded)
        self.dtype = self._agree_on_precision()
        self.module: Any = self.accelerator.prepare_model(trainee)
        self.log.begin_tracking({"steps": self.steps, **settings.model_dump()})

    def _agree_on_precision(self) -> torch.dtype | None:
        """As the run was begun, and in all processes alike: "auto" is decided by a measurement."""
        if not self.state.precision:
            own = autocast_dtype(self.settings.precision, self.device)
            without = largest_of_all(self.accelerator, int(own is None))
            self.state.precision = "fp32" if without else "bf16"
        return torch.bfloat16 if self.state.precision == "bf16" else None

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
        self.state = State(**state["loop"])
        self.resumed_from = self.saved = step
        self.job.say(f"resuming at step {step} of {self.steps}")

    def _save(self, folder: Path, keep: int = 2) -> None:
        self._check_weights()  # in all processes, before the first replaces a checkpoint
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
        self.log.begin(self.resumed_from)
        self.log.write(
            "resume" if self.resumed_from is not None else "start",
            steps=self.steps,
            tokens=self.total_tokens,
            precision=self.state.precision,
        )
        stopped = self.state.worse >= (self.settings.patience or math.inf)
        self._bar(None, self.state.step)
        with stop_signals() as asked, ThreadPoolExecutor(max_workers=1) as pool:
            saved_at = time.perf_counter()
            self._begin = saved_at - self.state.seconds
            step = self.state.step
            ahead = pool.submit(self.batches.of_step, self.job.train, step)
            while step < self.steps and not stopped:
                micro_batches = ahead.result()
                if step + 1 < self.steps:
                    ahead = pool.submit(self.batches.of_step, self.job.train, step + 1)
                self._step(step, micro_batches)
                step += 1
                self.state.step = step
                if len(self.job.heldout) and (
                    step % self.evaluate_every == 0 or step == self.steps
                ):
                    stopped = self._evaluate_and_judge()
                stop_signal = largest_of_all(self.accelerator, asked[0])
                if stop_signal:
                    self._save(self.checkpoints)
                    self.log.write("interrupted", step=step)
                    raise Interrupted(stop_signal, step)
                if largest_of_all(self.accelerator, int(self._due(step, saved_at))):
                    self._save(self.checkpoints)
                    self.saved, saved_at = step, time.perf_counter()
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
            for kind, count in reading.counts(batch).items():
                counts[kind] += count
        totals = sum_of_all(self.accelerator, [*counts.values(), tokens])
        counts = {kind: max(int(count), 1) for kind, count in zip(counts, totals, strict=False)}
        # DDP averages over processes: multiply what it will divide.
        scales = {kind: self.world * weight / counts[kind] for kind, weight in self.weights.items()}
        sums = self._forward_backward(step, micro_batches, scales)
        components = {
            kind: value / counts[kind]
            for kind, value in zip(self.weights, sum_of_all(self.accelerator, sums), strict=True)
        }
        loss = sum(self.weights[kind] * value for kind, value in components.items())
        grad_norm = self._clip()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            what = "gradient" if math.isfinite(loss) else "loss"
            raise self._failed(f"the {what} is not finite at step {step + 1}")
        rate = self.settings.learning_rate * schedule(step, self.steps, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.state.tokens += int(totals[-1])
        self.state.seconds = time.perf_counter() - self._begin
        self.state.last = {"loss": loss, "components": components}
        self._bar(loss, step + 1)
        if (step + 1) % self.settings.log_every == 0 or step in (0, self.steps - 1):
            self._log_step(step + 1, rate, grad_norm)

    def _check_weights(self) -> None:
        """Refuse weights of NaN or infinity, which a step with a finite loss may leave behind."""
        names = not_finite(self.job.trainee.state_dict())
        if names:
            names = [name.removeprefix("model.") for name in names]
            raise self._failed(
                f"the weights are not finite at step {self.state.step} ({some_not_finite(names)})"
            )

    def _failed(self, what: str) -> TrainingFailed:
        kept = "" if self.saved is None else f"; the checkpoint of step {self.saved} is kept"
        return TrainingFailed(
            f"{what}: lower training.learning_rate, or set training.precision=fp32{kept}"
        )

    def _forward_backward(
        self, step: int, micro_batches: list[tuple[int, Batch]], scales: Mapping[str, float]
    ) -> list[float]:
        trainee = self.job.trainee
        trainee.model.train(self.settings.dropout)
        if self.settings.gradient_checkpointing:
            # A layer is recomputed only if it is in training mode, its dropout is not.
            for module in trainee.model.modules():
                module.training |= bool(getattr(module, "gradient_checkpointing", False))
        self.optimizer.zero_grad(set_to_none=True)
        sums = dict.fromkeys(self.weights, 0.0)
        for position, (number, batch) in enumerate(micro_batches):
            last = position == len(micro_batches) - 1
            torch.manual_seed(_hash(self.job.seed, step, number))
            idle = number < 0  # another process has one micro-batch more: take part, add nothing
            with nullcontext() if last else self.accelerator.no_sync(self.module):
                own = dict.fromkeys(scales, 0.0) if idle else scales
                total, parts = self._forward(batch, own, self._temperature(step))
                torch.autograd.backward(total)  # accelerate's own scales by its configuration
            for kind, value in parts.items():
                sums[kind] += 0.0 if idle else float(value)
        return list(sums.values())

    def _forward(
        self, batch: Batch, scales: Mapping[str, float], temperature: float | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch = batch.to(self.device)
        with ExitStack() as stack:
            if self.dtype is not None:
                stack.enter_context(torch.autocast(self.device.type, self.dtype))
            result: tuple[Tensor, dict[str, Tensor]] = self.module(batch, dict(scales), temperature)
        return result

    def _temperature(self, step: int) -> float | None:
        """Of soft targets at a step; None without them."""
        soft = [o for o in self.job.trainee.reading.objectives if isinstance(o, SoftTargets)]
        return temperature_at(soft[0], step, self.steps) if soft else None

    def _clip(self) -> float:
        parameters = [p for p in self.job.trainee.parameters() if p.grad is not None]
        limit = self.settings.clip if self.settings.clip is not None else math.inf
        return float(torch.nn.utils.clip_grad_norm_(parameters, limit))

    # --- evaluation ---

    def evaluate(self) -> dict[str, Any]:
        """Mean losses on held-out text, with masks and a temperature that never change."""
        trainee, reading = self.job.trainee, self.job.trainee.reading
        trainee.model.eval()
        sums, counts = dict.fromkeys(self.weights, 0.0), dict.fromkeys(self.weights, 0)
        with torch.no_grad():
            for batch in self.batches.spread(
                self.job.heldout, self.settings.evaluate_sequences, EVALUATION_EPOCH
            ):
                batch = batch.to(self.device)
                _, parts = trainee(batch, dict.fromkeys(sums, 0.0))
                for kind, count in reading.counts(batch).items():
                    counts[kind] += count
                    sums[kind] += float(parts[kind])
        totals = sum_of_all(self.accelerator, [*sums.values(), *counts.values()])
        means = {k: totals[i] / max(totals[len(sums) + i], 1) for i, k in enumerate(sums)}
        return {"loss": sum(self.weights[k] * v for k, v in means.items()), "components": means}

    def _evaluate_and_judge(self) -> bool:
        """Evaluate, keep the best, and say whether patience has ended."""
        self._check_weights()
        result, state = self.evaluate(), self.state
        judged = result["loss"]
        if not math.isfinite(judged):
            raise self._failed(f"the loss on held-out text is not finite at step {state.step}")
        if self.job.score is not None:
            result["score"] = self.job.score()
            judged = -result["score"]
        self.log.write("evaluate", step=state.step, **result)
        self.log.track({"heldout/loss": result["loss"]}, state.step)
        if state.best_loss is None or judged < state.best_loss:
            state.best_loss, state.best_step, state.worse = judged, state.step, 0
            if self.settings.keep == "best":
                self._save(self.job.folder / "checkpoints-best", keep=1)
        else:
            state.worse += 1
        return self.settings.patience is not None and state.worse >= self.settings.patience

    def _finish(self, stopped: bool) -> Result:
        state = self.state
        self._check_weights()
        if self.saved != state.step:  # until its model is on the disk, nothing else holds the work
            self._save(self.checkpoints)
        self.accelerator.wait_for_everyone()
        if self.settings.keep == "best" and state.best_step not in (0, state.step):
            loaded = load_checkpoint(self.job.folder / "checkpoints-best", warn=self.job.say)
            if loaded is not None:
                self.job.trainee.load_state_dict(loaded[1]["model"], strict=False)
                self.job.say(
                    f"kept the weights of step {state.best_step}, the best on held-out text"
                )
        best = None
        if state.best_loss is not None:
            what, value = ("loss", state.best_loss)
            if self.job.score is not None:
                what, value = "score", -state.best_loss
            best = {what: value, "step": state.best_step}
        self.log.write("end", step=state.step, best=best, stopped_early=stopped)
        self.log.end_tracking()
        self.job.trainee.model.eval()
        return Result(
            state.step, state.tokens, state.seconds, state.last, best, stopped, self.resumed_from
        )

    # --- telling ---

    def _bar(self, loss: float | None, step: int) -> None:
        tokens = self.state.tokens
        self.job.progress(Progress(step, self.steps, tokens, self.total_tokens, loss))

    def _log_step(self, step: int, rate: float, grad_norm: float) -> None:
        last, temperature = self.state.last or {}, self._temperature(step - 1)
        self.log.write(
            "train",
            step=step,
            epoch=round(step / self.batches_per_epoch, 4),
            **last,
            learning_rate=rate,
            **({} if temperature is None else {"temperature": temperature}),
            grad_norm=grad_norm,
            tokens=self.state.tokens,
            seconds=round(self.state.seconds, 2),
        )
        self.log.track(
            {
                "train/loss": last["loss"],
                "train/learning_rate": rate,
                **{f"train/{kind}": value for kind, value in last["components"].items()},
            },
            step,
        )


def _own_state(trainee: Trainee) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once."""
    named = dict(trainee.named_parameters()) | dict(trainee.named_buffers())
    return {name: value.detach() for name, value in named.items()}


def _hash(*values: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr(values).encode(), digest_size=7).digest())
