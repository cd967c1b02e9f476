"""One training: what is trained on what, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.data import Examples, Masker, Tokens
from potstill.recipe import Training
from potstill.training.trainee import Trainee


@dataclass(frozen=True)
class Progress:
    """Hold one state of training, for bars: tokens, because batches differ in length."""

    step: int
    steps: int
    tokens: int
    total_tokens: int
    loss: float | None


@dataclass
class Result:
    """Hold what a training came to, as result.json has it."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    final: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    stopped_early: bool = False
    resumed_from: int | None = None


@dataclass
class State:
    """Hold what a checkpoint keeps beside weights and optimizer."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float | None = None  # for a task: minus the score
    best_step: int = 0
    worse: int = 0  # evaluations since the best
    precision: str = ""  # what was computed in
    last: dict[str, Any] | None = None


@dataclass(frozen=True)
class Job:
    """Hold one training: what, on which text, how, and where it writes."""

    trainee: Trainee
    train: Tokens | Examples
    heldout: Tokens | Examples
    masker: Masker | None
    pad_id: int
    settings: Training
    seed: int
    folder: Path
    fingerprint: str  # a checkpoint of another one is not resumed
    # The metric that a checkpoint is chosen by, the higher the better; None: the loss.
    score: Callable[[], float] | None = None
    progress: Callable[[Progress], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None
