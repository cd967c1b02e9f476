"""Teachers, and how a model is read for a task: the same signals from teacher and student."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from potstill.data import Batch
from potstill.models import LoadedModel, Signals
from potstill.models.captures import NOTHING, Wanted
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

    def __init__(
        self, loaded: LoadedModel, answers: Answers, reading: Reading, weight: float = 1.0
    ) -> None:
        self.loaded, self.answers, self.weight = loaded, answers, weight
        self.reading = reading
        nn.Module.to(loaded.model, "meta")

    def to(self, device: torch.device) -> None:
        """Do nothing: answers follow their batch."""

    def signals(self, batch: Batch, wanted: Wanted = NOTHING) -> Signals:
        """Return the answers to a batch's examples; zeros for a batch of no example."""
        assert wanted == NOTHING, "layers are not cached"
        device, task = batch.input_ids_BL.device, self.loaded.task
        hidden_BLD, vectors_BD = self._hidden(batch), self._vectors(batch)
        if task == Task.SENTENCE_EMBEDDING:
            assert vectors_BD is not None
            return self.reading.in_batch(hidden_BLD.to(device), vectors_BD.to(device))
        logits_KC = self._logits(batch).to(device)
        readout = identity(logits_KC.shape[1], logits_KC.new_empty(0), exact=True)
        if vectors_BD is not None:
            if task == Task.SENTENCE_SIMILARITY:
                vectors_BD = torch.cat(vectors_BD.chunk(2, dim=1))
            vectors_BD = vectors_BD.to(device)
        return Signals(hidden_BLD.to(device), logits_KC, readout, vectors_BD=vectors_BD)

    def _logits(self, batch: Batch) -> Tensor:
        values_RC = self.answers.logits_RC
        assert values_RC is not None
        if batch.numbers_B is None:
            return torch.zeros(int(row_counts(self.loaded.task, batch).sum()), values_RC.shape[1])
        return self.answers.rows(batch.numbers_B.cpu().numpy())

    def _vectors(self, batch: Batch) -> Tensor | None:
        values_ND = self.answers.vectors_ND
        if values_ND is None:
            return None
        if batch.numbers_B is None:
            return torch.zeros(int(row_counts(self.loaded.task, batch).sum()), values_ND.shape[1])
        return as_floats(values_ND[batch.numbers_B.cpu().numpy()])

    def _hidden(self, batch: Batch) -> Tensor:
        values_RD = self.answers.hidden_RD
        width = 0 if values_RD is None else values_RD.shape[1]
        hidden_BLD = torch.zeros(*batch.input_ids_BL.shape, width)
        if values_RD is not None and batch.numbers_B is not None:
            rows_RD = self.answers.rows(batch.numbers_B.cpu().numpy(), "hidden_RD")
            hidden_BLD[batch.attention_mask_BL.bool().cpu()] = rows_RD
        return hidden_BLD
