"""Teachers, and how a model is read for a task: the same signals from teacher and student."""

from __future__ import annotations

import torch
from torch import nn

from potstill.data import Batch
from potstill.models import LoadedModel, Signals
from potstill.models.captures import NOTHING, Wanted
from potstill.models.signals import Readout
from potstill.recipe import Task
from potstill.tasks.heads import Reading, identity, row_counts
from potstill.training.teacher_cache import Answers, as_floats


class LiveTeacher:
    """Ask a frozen model again for every batch; `weight` is among several teachers."""

    def __init__(self, loaded: LoadedModel, reading: Reading, weight: float = 1.0) -> None:
        self.loaded, self.reading, self.weight = loaded, reading, weight
        loaded.model.eval().requires_grad_(False)

    def to(self, device: torch.device) -> None:
        nn.Module.to(self.loaded.model, device)

    def signals(self, batch: Batch, wanted: Wanted = NOTHING) -> Signals:
        with torch.no_grad():
            return self.reading.signals(self.loaded, batch, wanted)


class CachedTeacher:
    """Give the cached answers of a teacher; `weight` is among several teachers.

    Its own weights are given up: what is left of the model are shapes.
    """

    def __init__(self, loaded: LoadedModel, answers: Answers, weight: float = 1.0) -> None:
        self.loaded, self.answers, self.weight = loaded, answers, weight
        nn.Module.to(loaded.model, "meta")
        self.readout = identity(answers.logits_RC.shape[1], torch.empty(0), exact=True)

    def to(self, device: torch.device) -> None:
        self.readout = Readout(self.readout.weight_VD.to(device), exact=True)

    def signals(self, batch: Batch, wanted: Wanted = NOTHING) -> Signals:
        """Return the answers to a batch's examples; zeros for a batch of no example."""
        assert wanted == NOTHING, "layers are not cached"
        answers, device = self.answers, batch.input_ids_BL.device
        kept_ND, vectors_BD = answers.vectors_ND, None
        if batch.numbers_B is None:
            count = int(row_counts(self.loaded.task, batch).sum())
            logits_KC = torch.zeros(count, answers.logits_RC.shape[1])
            if kept_ND is not None:
                vectors_BD = torch.zeros(count, kept_ND.shape[1])
        else:
            numbers = batch.numbers_B.cpu().numpy()
            logits_KC = answers.rows(numbers)
            if kept_ND is not None:
                vectors_BD = as_floats(kept_ND[numbers])
        if vectors_BD is not None and self.loaded.task == Task.SENTENCE_SIMILARITY:
            vectors_BD = torch.cat(vectors_BD.chunk(2, dim=1))
        return Signals(
            hidden_BLD=torch.zeros(*batch.input_ids_BL.shape, 0, device=device),
            features_KD=logits_KC.to(device),
            readout=self.readout,
            vectors_BD=None if vectors_BD is None else vectors_BD.to(device),
        )
