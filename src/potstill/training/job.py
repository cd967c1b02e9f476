"""One training: what is trained on what, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.data import Examples, Masker, Tokens
from potstill.recipe import Training
from potstill.training.trainee import Trainee


@dataclass(frozen=True)
class Progress:
    """One state of training, for bars: tokens, because batches differ in length."""

    step: int
    steps: int
    tokens: int
    total_tokens: int
    loss: float | None


@dataclass
class Result:
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    final: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    stopped_early: bool = False
    resumed_from: int | None = None


@dataclass
class State:
    """What a checkpoint holds beside weights and optimizer."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float | None = None  # of a task: minus the score
    best_step: int = 0
    worse: int = 0  # evaluations since the best
    precision: str = ""  # what was computed in
    last: dict[str, Any] | None = field(default=None)


@dataclass(frozen=True)
class Job:
    """One training: what, on which text, how, and where it writes."""

    trainee: Trainee
    train: Tokens | Examples
    heldout: Tokens | Examples
    masker: Masker | None
    pad_id: int
    settings: Training
    seed: int
    folder: Path
    fingerprint: str  # a checkpoint of another one is not resumed
    # Of a task: the metric that a checkpoint is chosen by, the higher the better; None: the loss.
    score: Callable[[], float] | None = None
    progress: Callable[[Progress], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None
