"""Teachers, and how a model is read for a task: the same signals from teacher and student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from potstill.data import Batch
from potstill.data.sequences import IGNORED
from potstill.heads import embedding_signals, head_rows, labelled_signals, masked_lm_signals
from potstill.models import LoadedModel, Signals
from potstill.models.captures import NOTHING, Wanted, listening
from potstill.objectives import Rows
from potstill.recipe import (
    GoldMse,
    HardTargets,
    HiddenCosine,
    InBatch,
    LogitsMse,
    Objective,
    PatientHidden,
    SoftTargets,
    Task,
    VectorMse,
)


@dataclass(frozen=True)
class Reading:
    """What the distributions of a run are over, and at which rows: the task's side of distillation.

    Attributes:
        group: texts compared with each other (sentence embeddings).
    """

    task: Task
    objectives: tuple[Objective, ...]
    scale: float
    group: int

    @staticmethod
    def of(
        task: Task, objectives: Sequence[Objective], in_batch: InBatch, batch_size: int
    ) -> Reading:
        return Reading(task, tuple(objectives), in_batch.scale, in_batch.group or batch_size)

    @property
    def all_positions(self) -> bool:
        """Whether a masked-LM distribution is wanted at every real token."""
        return self._everywhere(SoftTargets) or self._everywhere(LogitsMse)

    def signals(
        self,
        loaded: LoadedModel,
        batch: Batch,
        wanted: Wanted = NOTHING,
    ) -> Signals:
        """One model's signals of one micro-batch, with what is wanted of its layers.

        Gradients as the caller's mode says.
        """
        with listening(loaded.model, wanted) as heard:
            signals = self._signals(loaded, batch)
        return replace(signals, layers=heard.layers, qkv=heard.qkv)

    def _signals(self, loaded: LoadedModel, batch: Batch) -> Signals:
        if self.task == "masked_lm":
            return masked_lm_signals(
                loaded.model,
                batch.input_ids_BL,
                batch.attention_mask_BL,
                self._positions(batch),
            )
        if self.task != "sentence_embedding":
            return labelled_signals(loaded, batch)
        assert loaded.sentence is not None
        return embedding_signals(
            loaded.model,
            loaded.sentence.pooling,
            batch.input_ids_BL,
            batch.attention_mask_BL,
            scale=self.scale,
            group=self.group,
        )

    def rows(self, batch: Batch) -> Rows:
        """Which rows each loss is over, in the order of `signals`' features."""
        if self.task == "masked_lm":
            gold_K = batch.gold_BL[self._positions(batch)]
            masked_K = gold_K != IGNORED
            everywhere_K = torch.ones_like(masked_K)
            return Rows(
                soft_K=everywhere_K if self._everywhere(SoftTargets) else masked_K,
                mse_K=everywhere_K if self._everywhere(LogitsMse) else masked_K,
                gold_K=gold_K,
            )
        if self.task != "sentence_embedding":
            return head_rows(self.task, batch, teacher_decides=self._teacher_decides)
        compared_K = self._compared(len(batch), batch.input_ids_BL.device)
        # Any class will do for gold: hard targets of embeddings are the teacher's.
        return Rows(compared_K, compared_K, torch.where(compared_K, 0, IGNORED))

    def hidden_rows(self, batch: Batch) -> Tensor:
        """The tokens that losses on hidden states are over: those that have a tag where tokens have
        tags, real ones elsewhere (bool [B x L]).
        """
        if self.task == "token_classification":
            return batch.gold_BL != IGNORED
        return batch.attention_mask_BL.bool()

    def counts(self, batch: Batch) -> dict[str, int]:
        """Rows of each objective in one micro-batch; its sum is divided by the sum of them."""
        tokens, texts = int(self.hidden_rows(batch).sum()), len(batch)
        if self.task == "masked_lm":
            distributions = golden = int((batch.gold_BL != IGNORED).sum())
        elif self.task == "sentence_embedding":
            distributions = golden = int(self._compared(texts, batch.input_ids_BL.device).sum())
        else:
            rows = self.rows(batch)
            distributions, golden = int(rows.soft_K.sum()), rows.golden

        def count(objective: Objective) -> int:
            match objective:
                case SoftTargets() | LogitsMse():
                    return tokens if self._everywhere(type(objective)) else distributions
                case HardTargets() | GoldMse():
                    return golden
                case VectorMse():
                    return texts
                case HiddenCosine():
                    return tokens if objective.of == "tokens" else texts
                case PatientHidden():
                    return tokens if objective.tokens == "all" else texts
                case _:
                    return tokens

        return {objective.kind: count(objective) for objective in self.objectives}

    def _everywhere(self, kind: type[SoftTargets | LogitsMse]) -> bool:
        """Whether an objective of this kind is over the distributions of all real tokens."""
        return self.task == "masked_lm" and any(
            isinstance(o, kind) and o.positions == "all" for o in self.objectives
        )

    @property
    def _teacher_decides(self) -> bool:
        """Whether hard targets are the teacher's, so that every distribution has one."""
        return any(isinstance(o, HardTargets) and o.target == "teacher" for o in self.objectives)

    def _positions(self, batch: Batch) -> Tensor:
        return batch.attention_mask_BL.bool() if self.all_positions else batch.gold_BL != IGNORED

    def _compared(self, texts: int, device: torch.device) -> Tensor:
        """Texts that have two others in their group at least: with one, it is certain at once.

        Only the last group can be so small.
        """
        compared = torch.ones(texts, dtype=torch.bool, device=device)
        rest = texts % self.group
        if rest in (1, 2):
            compared[-rest:] = False
        return compared


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
