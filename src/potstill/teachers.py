"""Teachers, and how a model is read for a task: the same signals from teacher and student."""

from __future__ import annotations

import torch

from potstill.data import Batch
from potstill.models import LoadedModel, Signals
from potstill.models.captures import NOTHING, Wanted
from potstill.tasks.heads import Reading


class LiveTeacher:
    """A frozen model that is asked anew for every batch; `weight` is among several of them."""

    def __init__(self, loaded: LoadedModel, reading: Reading, weight: float = 1.0) -> None:
        self.loaded = loaded
        self.reading = reading
        self.weight = weight
        loaded.model.eval().requires_grad_(False)

    def to(self, device: torch.device) -> None:
        torch.nn.Module.to(self.loaded.model, device)

    def signals(self, batch: Batch, wanted: Wanted = NOTHING) -> Signals:
        with torch.no_grad():
            return self.reading.signals(self.loaded, batch, wanted)
