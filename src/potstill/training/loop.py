"""The only training loop, on accelerate.

Exactness comes from pure functions: the order of examples is one of (seed, epoch), a mask one of
(seed, epoch, example), dropout one of (seed, step, micro-batch). So a resumed run, two processes,
or other micro-batches give the same numbers, and a checkpoint holds no random state.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.data import Batch
from potstill.data.batches import MicroBatches, plan_steps
from potstill.data.masking import EVALUATION_EPOCH
from potstill.errors import Interrupted, TrainingFailed
from potstill.models.finite import not_finite, some_not_finite
from potstill.storage.machine import is_out_of_memory
from potstill.storage.manifest import blake2b
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
from potstill.training.optimizer import clip, make_optimizer, pack_optimizer, unpack_optimizer
from potstill.training.precision import FORMATS, TRIAL_TOKENS, agreed_format
from potstill.training.schedule import evaluations, learning_rate


def train(job: Job) -> Result:
    """Train until the first of the job's limits, an early stop or a signal.

    Where the job's folder holds a checkpoint of the same fingerprint, training resumes there.

    Raises:
        ValueError: There is no text to train on, or there are fewer micro-batches than processes.
        TrainingFailed: A loss, a gradient or weights are not finite.
        Interrupted: SIGINT or SIGTERM came; the work is saved.
    """
    return _Loop(job).run()


class _Loop:
    def __init__(self, job: Job) -> None:
        self.job, self.settings, self.trainee = job, job.settings, job.trainee
        settings, reading = job.settings, job.trainee.reading
        self.accelerator = make_accelerator(settings, job.folder)
        self.device, self.world = self.accelerator.device, self.accelerator.num_processes
        if len(job.train) == 0:
            raise ValueError("there is no text to train on. Give more text.")
        check_processes(settings, self.world, reading.group if reading.grouped else None)
        size = settings.batch_size
        self.steps, self.total_tokens = plan_steps(job.train.lengths, settings, job.seed)
        self.batches_per_epoch = -(-len(job.train) // size)
        self.weights: dict[str, float] = {o.kind: o.weight for o in reading.objectives}
        self.state = State()
        self.resumed_from: int | None = None
        self.saved: int | None = None  # the step of the newest checkpoint
        self.checkpoints = job.folder / "checkpoints"
        self.best = job.folder / "checkpoints-best"
        path = job.folder / "log.jsonl"
        self.log = TrainingLog(self.accelerator, path, bool(settings.trackers))
        self.batches = MicroBatches(
            size,
            settings.micro_batch_size or size,
            pad_id=job.pad_id,
            masker=job.masker,
            seed=job.seed,
            rank=self.accelerator.process_index,
            world=self.world,
        )
        self.evaluate_every, self.evaluated = evaluations(
            settings, job.heldout.lengths, self.steps, self.total_tokens, job.score is not None
        )
        self._prepare()

    def _prepare(self) -> None:
        trainee, settings, job = self.trainee, self.settings, self.job
        trainee.to(self.device)
        for teacher in trainee.teachers:
            teacher.to(self.device)
        if settings.gradient_checkpointing:
            with warnings.catch_warnings():
                # the name changes in transformers 6, which is nothing to a run's user
                warnings.simplefilter("ignore", FutureWarning)
                trainee.model.gradient_checkpointing_enable()
        if settings.compile:
            trainee.model.base_model.compile(dynamic=True)
        self.optimizer = make_optimizer(trainee, settings)
        loaded = load_checkpoint(self.checkpoints, warn=self.job.say)
        if loaded is not None:
            self._restore(*loaded)
        if not self.state.precision:  # else compute as the run began
            self.state.precision = agreed_format(self.accelerator, settings, self._trial, job.say)
        self.format = FORMATS[self.state.precision]
        self.module: Any = self.accelerator.prepare_model(trainee)
        self.log.begin_tracking({"steps": self.steps, **settings.model_dump()})

    def _trial(self) -> Callable[[], tuple[float, float]]:
        """Return a pass over a small micro-batch that changes no weight: loss and gradient norm."""
        job, trainee = self.job, self.trainee
        rows = max(4, TRIAL_TOKENS // max(int(job.train.lengths.mean()), 1))
        rows = min(rows, self.batches.size)
        some = replace(self.batches, batch_size=rows, size=rows, rank=0, world=1)
        [(_, batch)] = some.of_step(job.train, 0)
        batch = batch.to(self.device)
        counts = trainee.reading.counts(batch)
        scales = {kind: weight / max(counts[kind], 1) for kind, weight in self.weights.items()}

        def step() -> tuple[float, float]:
            trainee.begin_step(self.settings)
            torch.manual_seed(job.seed)
            total, _ = trainee(batch, dict(scales))
            torch.autograd.backward(total)
            return float(total), clip(trainee, math.inf)

        return step

    # --- checkpoints ---

    def _restore(
        self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]
    ) -> None:
        if state["fingerprint"] != self.job.fingerprint:
            self.job.say(
                "note: the checkpoint is of another configuration. Training starts from scratch."
            )
            return
        self.trainee.load_state_dict(tensors["model"], strict=False)
        unpack_optimizer(self.optimizer, tensors["optimizer"], state["optimizer"])
        self.state = State(**state["loop"])
        self.resumed_from = self.saved = step
        self.job.say(f"resuming at step {step} of {self.steps}")

    def _save(self, folder: Path, keep: int = 2) -> None:
        self._check_weights()  # in all processes, before the first replaces a checkpoint
        if not self.accelerator.is_main_process:
            return
        optimizer, optimizer_state = pack_optimizer(self.optimizer)
        trainee = self.trainee  # tied parameters are named once
        named = [*trainee.named_parameters(), *trainee.named_buffers()]
        model = {name: value.detach() for name, value in named}
        state = {"fingerprint": self.job.fingerprint, "optimizer": optimizer_state}
        save_checkpoint(
            folder,
            self.state.step,
            {"model": model, "optimizer": optimizer},
            {**state, "loop": asdict(self.state)},
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
        stopped = self._out_of_patience()
        self._bar(None, self.state.step)
        with stop_signals() as asked, ThreadPoolExecutor(max_workers=1) as pool:
            saved_at = time.perf_counter()
            self._begin = saved_at - self.state.seconds
            step = self.state.step
            ahead = pool.submit(self._cut, step)
            while step < self.steps and not stopped:
                size, micro_batches = ahead.result()
                if step + 1 < self.steps:
                    ahead = pool.submit(self._cut, step + 1)
                if size != self.batches.size:  # halved meanwhile
                    _, micro_batches = self._cut(step)
                self.trainee.set_step(step, self.steps)
                self._step(step, micro_batches)
                step += 1
                self.state.step = step
                if (step % self.evaluate_every == 0 or step == self.steps) and len(
                    self.job.heldout
                ):
                    stopped = self._evaluate_and_judge()
                stop_signal = largest_of_all(self.accelerator, asked[0])
                if stop_signal:
                    self._save(self.checkpoints)
                    self.log.write("interrupted", step=step)
                    raise Interrupted(stop_signal, step)
                every = self.settings.checkpoint_steps
                old = time.perf_counter() - saved_at > 60 * self.settings.checkpoint_minutes
                due = old or (every is not None and step % every == 0)
                if largest_of_all(self.accelerator, int(due)):
                    self._save(self.checkpoints)
                    self.saved, saved_at = step, time.perf_counter()
        return self._finish(stopped)

    def _cut(self, step: int) -> tuple[int, list[tuple[int, Batch]]]:
        """Return a step's micro-batches, after the size that they were cut to."""
        return self.batches.size, self.batches.of_step(self.job.train, step)

    def _step(self, step: int, micro_batches: list[tuple[int, Batch]]) -> None:
        counted: Counter[str] = Counter()
        for number, batch in micro_batches:
            if number >= 0:
                counted.update(self.trainee.reading.counts(batch))
                counted["all tokens"] += int(batch.attention_mask_BL.sum())
        *found, tokens = sum_of_all(
            self.accelerator, [counted[kind] for kind in (*self.weights, "all tokens")]
        )
        counts = {k: max(int(count), 1) for k, count in zip(self.weights, found, strict=True)}
        # DDP averages over processes: multiply what it will divide.
        scales = {kind: self.world * weight / counts[kind] for kind, weight in self.weights.items()}
        while (sums := self._forward_backward(step, micro_batches, scales)) is None:
            _, micro_batches = self._cut(step)
        components = {
            kind: value / counts[kind]
            for kind, value in zip(self.weights, sum_of_all(self.accelerator, sums), strict=True)
        }
        loss = sum(self.weights[kind] * value for kind, value in components.items())
        grad_norm = clip(self.trainee, self.settings.clip or math.inf)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            what = "gradient" if math.isfinite(loss) else "loss"
            raise self._failed(f"the {what} is not finite at step {step + 1}")
        rate = learning_rate(self.settings, step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.state.tokens += int(tokens)
        self.state.seconds = time.perf_counter() - self._begin
        self.state.last = {"loss": loss, "components": components}
        self._bar(loss, step + 1)
        if (step + 1) % self.settings.log_every == 0 or step in (0, self.steps - 1):
            self._log_step(step + 1, rate, grad_norm)

    def _check_weights(self) -> None:
        """Refuse weights of NaN or infinity, which a step with a finite loss may leave behind."""
        names = [n.removeprefix("model.") for n in not_finite(self.trainee.state_dict())]
        if names:
            raise self._failed(
                f"the weights are not finite at step {self.state.step} ({some_not_finite(names)})"
            )

    def _failed(self, what: str) -> TrainingFailed:
        kept = "" if self.saved is None else f" The checkpoint of step {self.saved} is kept."
        return TrainingFailed(
            f"{what}. Lower training.learning_rate, or set training.precision=fp32.{kept}"
        )

    def _forward_backward(
        self, step: int, micro_batches: list[tuple[int, Batch]], scales: Mapping[str, float]
    ) -> list[float] | None:
        """Add up gradients, and return the sums of losses; None: micro-batches were halved."""
        try:
            return self._accumulate(step, micro_batches, scales)
        except (RuntimeError, MemoryError) as error:
            half, odd = divmod(self.batches.size, 2)
            group = self.trainee.reading.group if self.trainee.reading.grouped else 1
            if odd or half % group or self.world > 1 or not is_out_of_memory(error):
                raise
        # outside the handler, whose traceback holds the tensors of the failed pass
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.job.say(
            f"note: micro-batches of {self.batches.size} do not fit in memory. From here on they "
            f"are of {half}, more for each step; set training.micro_batch_size: {half} to begin so."
        )
        self.batches.size = half
        return None

    def _accumulate(
        self, step: int, micro_batches: list[tuple[int, Batch]], scales: Mapping[str, float]
    ) -> list[float]:
        self.trainee.begin_step(self.settings)
        found: list[Mapping[str, Tensor]] = []
        for position, (number, batch) in enumerate(micro_batches):
            last = position == len(micro_batches) - 1
            torch.manual_seed(_hash(self.job.seed, step, number))
            idle = number < 0  # another process has one micro-batch more: take part, add nothing
            with nullcontext() if last else self.accelerator.no_sync(self.module):
                own = dict.fromkeys(scales, 0.0) if idle else scales
                with self.format.applied(self.device):
                    total, parts = self.module(batch.to(self.device), dict(own))
                    torch.autograd.backward(total)  # accelerate's own scales by its configuration
            found += [] if idle else [parts]
        # read at the end, so that nothing waits for a GPU between micro-batches
        return [sum(float(parts[kind]) for parts in found) for kind in self.weights]

    # --- evaluation ---

    def evaluate(self) -> dict[str, Any]:
        """Return mean losses on held-out text, with masks and a temperature that never change."""
        trainee = self.trainee
        trainee.set_step(self.steps, self.steps)
        trainee.model.eval()
        sums, counts = dict.fromkeys(self.weights, 0.0), dict.fromkeys(self.weights, 0)
        part = self.evaluated, EVALUATION_EPOCH
        with torch.no_grad():
            for batch in self.batches.spread(self.job.heldout, *part):
                batch = batch.to(self.device)
                with self.format.applied(self.device):
                    _, parts = trainee(batch, dict.fromkeys(sums, 0.0))
                for kind, count in trainee.reading.counts(batch).items():
                    counts[kind] += count
                    sums[kind] += float(parts[kind])
        totals = sum_of_all(self.accelerator, [*sums.values(), *counts.values()])
        means = {k: totals[i] / max(totals[len(sums) + i], 1) for i, k in enumerate(sums)}
        return {"loss": sum(self.weights[k] * v for k, v in means.items()), "components": means}

    def _evaluate_and_judge(self) -> bool:
        """Evaluate, keep the best, and return whether patience has ended."""
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
                self._save(self.best, keep=1)
        else:
            state.worse += 1
        return self._out_of_patience()

    def _out_of_patience(self) -> bool:
        return self.state.worse >= (self.settings.patience or math.inf)

    def _finish(self, stopped: bool) -> Result:
        state = self.state
        self._check_weights()
        if self.saved != state.step:  # until its model is on the disk, nothing else holds the work
            self._save(self.checkpoints)
        self.accelerator.wait_for_everyone()
        if self.settings.keep == "best" and state.best_step not in (0, state.step):
            loaded = load_checkpoint(self.best, warn=self.job.say)
            if loaded is not None:
                self.trainee.load_state_dict(loaded[1]["model"], strict=False)
                self.job.say(f"the weights of step {state.best_step}, the best, are kept")
        best = None
        if state.best_loss is not None:
            scored = self.job.score is not None
            best = {"score": -state.best_loss} if scored else {"loss": state.best_loss}
            best["step"] = state.best_step
        self.log.write("end", step=state.step, best=best, stopped_early=stopped)
        self.log.end_tracking()
        self.trainee.model.eval()
        return Result(
            state.step, state.tokens, state.seconds, state.last, best, stopped, self.resumed_from
        )

    # --- progress ---

    def _bar(self, loss: float | None, step: int) -> None:
        tokens = self.state.tokens
        self.job.progress(Progress(step, self.steps, tokens, self.total_tokens, loss))

    def _log_step(self, step: int, rate: float, grad_norm: float) -> None:
        last = self.state.last or {}
        self.log.write(
            "train",
            step=step,
            epoch=round(step / self.batches_per_epoch, 4),
            **last,
            learning_rate=rate,
            **self.trainee.logged,
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


def _hash(*values: int) -> int:
    return int.from_bytes(blake2b(repr(values).encode(), size=7))
