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


class CachedTeacher:
    """A teacher that has been asked; `weight` is among several of them.

    Its own weights are given up: what is left of the model are shapes.
    """

    def __init__(self, loaded: LoadedModel, answers: Answers, weight: float = 1.0) -> None:
        self.loaded = loaded
        self.answers = answers
        self.weight = weight
        nn.Module.to(loaded.model, "meta")
        self.readout = identity(answers.logits_RC.shape[1], torch.empty(0), exact=True)

    def to(self, device: torch.device) -> None:
        weight = self.readout.weight_VD.to(device)
        self.readout = Readout(weight, exact=True)

    def signals(self, batch: Batch, wanted: Wanted = NOTHING) -> Signals:
        """The answers to a batch's examples; zeros for a batch that is of none."""
        assert wanted == NOTHING, "layers are not kept"
        answers, device = self.answers, batch.input_ids_BL.device
        vectors_BD = None
        if batch.numbers_B is None:
            count = int(row_counts(self.loaded.task, batch).sum())
            logits_KC = torch.zeros(count, answers.logits_RC.shape[1])
            if answers.vectors_ND is not None:
                vectors_BD = torch.zeros(count, answers.vectors_ND.shape[1])
        else:
            numbers = batch.numbers_B.cpu().numpy()
            logits_KC = answers.rows(numbers)
            if answers.vectors_ND is not None:
                vectors_BD = as_floats(answers.vectors_ND[numbers])
        if vectors_BD is not None and self.loaded.task == Task.SENTENCE_SIMILARITY:
            vectors_BD = torch.cat(vectors_BD.chunk(2, dim=1))
        return Signals(
            hidden_BLD=torch.zeros(*batch.input_ids_BL.shape, 0, device=device),
            features_KD=logits_KC.to(device),
            readout=self.readout,
            vectors_BD=None if vectors_BD is None else vectors_BD.to(device),
        )
