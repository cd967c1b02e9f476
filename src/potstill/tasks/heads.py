"""Read a task's head: what its distributions are over, and the gold of each.

| task | K rows | a row's distribution is over | gold_BL of a batch |
|---|---|---|---|
| classification | B | the labels | int64 [B] |
| multi_label | B * labels | no and yes, of one label | int64 [B x labels], 0 or 1 |
| regression | B | nothing: one value | float [B] |
| sentence_similarity | B / 2 | nothing: a cosine | float [B / 2] |
| token_classification | tokens that have a label | the labels | int64 [B x L] |
| question_answering | 2 B: starts, then ends | the context's tokens, the first | int64 [B x 2] |

The texts of sentence_similarity are encoded apart: the first ones of all pairs, then the second
ones.

Gold is -100 where nothing is to be predicted (ignored word pieces), and UNLABELED where only a
teacher can say; not a number for regression and similarity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from potstill.data import Batch
from potstill.data.sequences import IGNORED, UNLABELED
from potstill.models import LoadedModel, Signals
from potstill.models.captures import NOTHING, Wanted, listening
from potstill.models.families import last_linear, lm_readout
from potstill.models.sentence_modules import pool
from potstill.models.signals import EXCLUDED, Readout, wide
from potstill.objectives import Rows
from potstill.recipe import InBatch, Objective, Task


def labelled_signals(loaded: LoadedModel, batch: Batch) -> Signals:
    """Return a model's signals in a task with labeled examples."""
    if loaded.task == Task.SENTENCE_SIMILARITY:
        return similarity_signals(loaded, batch)
    return head_signals(loaded, batch)


def similarity_signals(loaded: LoadedModel, batch: Batch) -> Signals:
    """Return hidden states and unit embeddings of all texts, and the cosine of each pair.

    The cosine is compared with people's scores, as in Reimers & Gurevych 2019, section 3.
    """
    assert loaded.sentence is not None
    hidden_BLD = loaded.model.base_model(**model_inputs(loaded, batch)).last_hidden_state
    pooled_BD = pool(wide(hidden_BLD), batch.attention_mask_BL, loaded.sentence.pooling)
    unit_BD = F.normalize(pooled_BD, dim=-1)
    first_PD, second_PD = unit_BD.chunk(2)
    cosine_P1 = (first_PD * second_PD).sum(dim=-1, keepdim=True)
    return Signals(hidden_BLD, cosine_P1, identity(1, cosine_P1, exact=True), vectors_BD=unit_BD)


def head_signals(loaded: LoadedModel, batch: Batch) -> Signals:
    """Return last hidden states, and the distributions of the task's own head.

    The model runs as a whole, so that its pooling and its head's activations and dropout are its
    own; what the head's last linear map reads is listened to.
    """
    model, task, inputs = loaded.model, loaded.task, model_inputs(loaded, batch)
    heard: dict[str, Tensor] = {}

    def keep_features(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        heard["features"] = arguments[0]

    def keep_hidden(_: nn.Module, __: Any, output: Any) -> None:
        heard["hidden"] = output[0]

    final = last_linear(model)
    handles = [
        final.register_forward_pre_hook(keep_features),
        model.base_model.register_forward_hook(keep_hidden),
    ]
    try:
        output = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    if task == Task.QUESTION_ANSWERING:
        return _span_signals(heard["hidden"], output, batch)
    features, readout = heard["features"], Readout(final.weight, final.bias)
    if task != Task.TOKEN_CLASSIFICATION and features.dim() == 3:
        # EuroBERT averages the logits of tokens, which are those of the average
        features = pool(features, batch.attention_mask_BL, "mean")
    vectors_BD = features if features.dim() == 2 else None
    if task == Task.MULTI_LABEL:
        # the sigmoid of z is the softmax of (0, z), at every temperature
        logits_BC = output.logits
        pairs_BC2 = torch.stack([torch.zeros_like(logits_BC), logits_BC], dim=-1)
        features, readout = pairs_BC2.flatten(0, 1), identity(2, logits_BC)
    elif task == Task.TOKEN_CLASSIFICATION:
        features = features[batch.gold_BL != IGNORED]
    return Signals(heard["hidden"], features, readout, vectors_BD=vectors_BD)


def row_counts(task: Task, batch: Batch) -> Tensor:
    """Count each example's rows among those of `head_signals`: int64 [B]."""
    if task == Task.TOKEN_CLASSIFICATION:
        return (batch.gold_BL != IGNORED).sum(1)
    if task == Task.SENTENCE_SIMILARITY:
        return torch.ones_like(batch.input_ids_BL[::2, 0])
    each = batch.gold_BL.shape[1] if task == Task.MULTI_LABEL else 1
    return torch.full_like(batch.input_ids_BL[:, 0], each)


def model_inputs(loaded: LoadedModel, batch: Batch) -> dict[str, Tensor]:
    """Return a model's inputs, with token types only where it distinguishes them."""
    inputs = {"input_ids": batch.input_ids_BL, "attention_mask": batch.attention_mask_BL}
    if batch.token_type_ids_BL is not None and "token_type_ids" in loaded.inputs:
        inputs["token_type_ids"] = batch.token_type_ids_BL
    return inputs


def head_logits(loaded: LoadedModel, batch: Batch) -> Tensor:
    """Return a head's logits for sequences [B x C] or tokens [B x L x C]."""
    logits: Tensor = loaded.model(**model_inputs(loaded, batch)).logits
    return logits


def head_rows(task: Task, batch: Batch, *, teacher_decides: bool) -> Rows:
    """Return which of `head_signals`' rows each loss is over, and their gold.

    `teacher_decides`: hard targets are the teacher's, so that every row has one.
    """
    tokens_BL = hidden_BL = batch.attention_mask_BL.bool()
    if not task.has_distribution:
        everywhere_K = torch.ones_like(batch.gold_BL, dtype=torch.bool)
        nobody_K = torch.full_like(everywhere_K, IGNORED, dtype=torch.int64)
        return Rows(everywhere_K, everywhere_K, nobody_K, tokens_BL, hidden_BL, batch.gold_BL)
    # answers: all starts before all ends, as in `head_signals`
    gold_K = (batch.gold_BL.T if task == Task.QUESTION_ANSWERING else batch.gold_BL).flatten()
    if task == Task.TOKEN_CLASSIFICATION:
        hidden_BL = batch.gold_BL != IGNORED
        gold_K = gold_K[gold_K != IGNORED]
    counted_K = gold_K != IGNORED
    if teacher_decides:  # any class will do: the teacher's takes its place
        gold_K = torch.where(counted_K, 0, IGNORED)
    gold_K = torch.where(gold_K == UNLABELED, IGNORED, gold_K)
    return Rows(counted_K, counted_K, gold_K, tokens_BL, hidden_BL)


def blank_gold(task: Task, ids_BL: Tensor, config: Any) -> Tensor:
    """Return gold of the right shape for some token ids, with no meaning."""
    match task:
        case Task.MASKED_LM | Task.SENTENCE_EMBEDDING:
            return ids_BL
        case Task.CLASSIFICATION:
            return torch.zeros_like(ids_BL[:, 0])
        case Task.MULTI_LABEL:
            return ids_BL.new_zeros((len(ids_BL), config.num_labels))
        case Task.REGRESSION:
            return torch.zeros_like(ids_BL[:, 0], dtype=torch.float32)
        case Task.SENTENCE_SIMILARITY:
            return torch.zeros_like(ids_BL[::2, 0], dtype=torch.float32)
        case Task.TOKEN_CLASSIFICATION:
            return torch.zeros_like(ids_BL)
        case Task.QUESTION_ANSWERING:
            return torch.zeros_like(ids_BL[:, :2])


def _span_signals(hidden_BLD: Tensor, output: Any, batch: Batch) -> Signals:
    """Return where an answer starts, then ends, as distributions over a sequence's tokens.

    The question, special tokens but the first, and padding can be neither. The first stands for no
    answer (Devlin et al. 2019, section 4.3).
    """
    own_BL = batch.answerable_BL
    allowed_BL = batch.attention_mask_BL.bool() if own_BL is None else own_BL
    logits_KL = torch.cat([output.start_logits, output.end_logits])
    bias_BL = torch.where(allowed_BL, 0.0, EXCLUDED).to(logits_KL.dtype)
    readout = identity(logits_KL.shape[1], logits_KL, bias_BL.repeat(2, 1), exact=True)
    return Signals(hidden_BLD, logits_KL, readout)


def identity(
    size: int, like: Tensor, bias: Tensor | None = None, *, exact: bool = False
) -> Readout:
    """Return a readout for features that are already logits."""
    return Readout(torch.eye(size, dtype=like.dtype, device=like.device), bias, exact)


def masked_lm_signals(loaded: LoadedModel, batch: Batch, rows_BL: Tensor) -> Signals:
    """Return hidden states, and a distribution over the vocabulary at each of `rows_BL` (bool)."""
    hidden_BLD = _hidden(loaded.model, batch)
    features_KD = loaded.family.lm_features(loaded.model, hidden_BLD[rows_BL])
    return Signals(hidden_BLD, features_KD, lm_readout(loaded.model))


def embedded(loaded: LoadedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return hidden states [B x L x D] and the pooled unit vectors [B x D]."""
    assert loaded.sentence is not None
    hidden_BLD = _hidden(loaded.model, batch)
    pooled_BD = pool(hidden_BLD.float(), batch.attention_mask_BL, loaded.sentence.pooling)
    return hidden_BLD, F.normalize(pooled_BD, dim=-1)


def in_batch_signals(hidden_BLD: Tensor, unit_BD: Tensor, *, scale: float, group: int) -> Signals:
    """Return each text's distribution over the others of its group, by their unit vectors.

    Logits are scale * cosine similarity; the text itself is left out.
    """
    number_B = torch.arange(len(unit_BD), device=unit_BD.device)
    same_BB = number_B[:, None] // group == number_B // group
    same_BB &= number_B[:, None] != number_B
    excluded_BB = torch.where(same_BB, 0.0, EXCLUDED).to(unit_BD.dtype)
    readout = Readout(unit_BD * scale, excluded_BB, exact=True)
    return Signals(hidden_BLD, unit_BD, readout, vectors_BD=unit_BD)


def _hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return last hidden states [B x L x D] of texts that are one segment each."""
    inputs = {"input_ids": batch.input_ids_BL, "attention_mask": batch.attention_mask_BL}
    hidden_BLD: Tensor = model.base_model(**inputs).last_hidden_state
    return hidden_BLD


@dataclass(frozen=True)
class Reading:
    """Hold the task's side of what the distributions of a run are over, and at which rows.

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
    def grouped(self) -> bool:
        """Return whether the texts of a batch are compared with each other, in groups."""
        return self.task == Task.SENTENCE_EMBEDDING

    @property
    def all_positions(self) -> bool:
        """Return whether a masked-LM distribution is wanted at every real token."""
        return self.task == Task.MASKED_LM and any(
            o.rows == "distributions" for o in self.objectives
        )

    def signals(self, loaded: LoadedModel, batch: Batch, wanted: Wanted = NOTHING) -> Signals:
        """Return one model's signals of one micro-batch, with what is wanted of its layers."""
        with listening(loaded.model, loaded.family, wanted) as heard:
            if self.task == Task.MASKED_LM:
                signals = masked_lm_signals(loaded, batch, self._positions(batch))
            elif self.task == Task.SENTENCE_EMBEDDING:
                signals = self.in_batch(*embedded(loaded, batch))
            else:
                signals = labelled_signals(loaded, batch)
        return replace(signals, layers=heard.layers, qkv=heard.qkv)

    def in_batch(self, hidden_BLD: Tensor, unit_BD: Tensor) -> Signals:
        """Return the signals of a sentence encoder by its hidden states and unit vectors."""
        return in_batch_signals(hidden_BLD, unit_BD, scale=self.scale, group=self.group)

    def rows(self, batch: Batch) -> Rows:
        """Return which rows each loss is over, in the order of `signals`' features."""
        tokens_BL = batch.attention_mask_BL.bool()
        if self.task == Task.MASKED_LM:
            gold_K = batch.gold_BL[self._positions(batch)]
            masked_K = gold_K != IGNORED
            return Rows(torch.ones_like(masked_K), masked_K, gold_K, tokens_BL, tokens_BL)
        if self.task == Task.SENTENCE_EMBEDDING:
            compared_K = self._compared(batch)
            # Any class will do for gold: hard targets of embeddings are the teacher's.
            gold_K = torch.where(compared_K, 0, IGNORED)
            return Rows(compared_K, compared_K, gold_K, tokens_BL, tokens_BL)
        teacher_decides = any(o.rows == "gold" and not o.uses_gold for o in self.objectives)
        return head_rows(self.task, batch, teacher_decides=teacher_decides)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return how many rows of each objective a micro-batch has, which divide its sum."""
        rows = self.rows(batch)
        return {objective.kind: rows.count(objective.rows) for objective in self.objectives}

    def _positions(self, batch: Batch) -> Tensor:
        return batch.attention_mask_BL.bool() if self.all_positions else batch.gold_BL != IGNORED

    def _compared(self, batch: Batch) -> Tensor:
        """Return which texts have at least two others in their group: one would be certain.

        Only the last group can be smaller.
        """
        compared = torch.ones_like(batch.input_ids_BL[:, 0], dtype=torch.bool)
        rest = len(batch) % self.group
        if rest in (1, 2):
            compared[-rest:] = False
        return compared
