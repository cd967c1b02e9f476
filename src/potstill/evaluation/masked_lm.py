"""Masked-LM models on held-out text: how well they predict, how alike they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.data import Batch, Masker, Tokens, collate
from potstill.data.masking import EVALUATION_EPOCH
from potstill.evaluation.lineup import Compared, Lineup
from potstill.models import LoadedModel, load_model
from potstill.models.onnx_models import OnnxModel
from potstill.recipe import Evaluate, Task
from potstill.tasks import metrics
from potstill.tasks.heads import masked_lm_signals

BATCH = 32
GRAPH_BATCH = 4  # of an ONNX graph
SHOWN = 50  # examples that the report may choose from
CHUNK = 256  # rows of logits that exist at a time, per model


@dataclass
class _Tally:
    """Sums of one model, and right answers by sequence for the intervals."""

    loss: float = 0.0
    kl: float = 0.0
    agree: int = 0
    cosine: float = 0.0
    right_S: list[float] = field(default_factory=list)


@dataclass
class _Seen:
    """What the models were asked: real tokens, masked positions by sequence, gold by batch."""

    tokens: int = 0
    masked_S: list[int] = field(default_factory=list)
    gold: list[np.ndarray] = field(default_factory=list)

    def add(self, batch: Batch) -> None:
        is_masked_BL = batch.gold_BL >= 0
        self.tokens += int(batch.attention_mask_BL.sum())
        self.masked_S += is_masked_BL.sum(1).tolist()
        self.gold.append(batch.gold_BL[is_masked_BL].numpy())


def evaluate_masked_lm(
    lineup: Lineup,
    heldout: Tokens,
    train_counts: np.ndarray,
    masker: Masker,
    settings: Evaluate,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Any]:
    """Loss and top-1 at the masked positions of held-out text, agreement with the baseline; as
    result.json.

    All models see the same masks, which never change. T = 1.

    Args:
        lineup: of a model that was trained several times the first training is scored.
        train_counts: how often each token stands in the training text: the unigram reference.

    Raises:
        ValueError: no held-out text, models of different vocabularies, or a model without
            positions for the longest of the sequences.
    """
    check_heldout(heldout)
    baseline = lineup.baseline
    loaded = {name: load_model(folder, Task.MASKED_LM) for name, folder in lineup.folders.items()}
    check_vocabularies(loaded, baseline)
    pad_id = loaded[baseline].tokenizer.pad_token_id
    chosen = np.arange(len(heldout))[: settings.max_records]
    _check_lengths(loaded, int(heldout.lengths[chosen].max()))
    chosen = chosen[np.argsort(heldout.lengths[chosen], kind="stable")]
    tallies, seen = {name: _Tally() for name in lineup.order}, _Seen()
    example = _Example(baseline, lineup.shown)
    for start in range(0, len(chosen), BATCH):
        rows = chosen[start : start + BATCH]
        batch = collate(heldout, rows, pad_id, masker, lineup.seed, EVALUATION_EPOCH)
        seen.add(batch)
        _one_batch(loaded, batch, tallies, example, baseline)
        progress(min(start + BATCH, len(chosen)) / len(chosen))
    masked = sum(seen.masked_S)
    # By sequence, scaled so that their mean is the top-1 of all positions, as its chance level is.
    rates = {name: np.array(t.right_S) / np.mean(seen.masked_S) for name, t in tallies.items()}
    unigram = _unigram(train_counts, masker.special_V, np.concatenate(seen.gold))
    plainly = _unigram_rates(train_counts, masker.special_V, seen.gold, seen.masked_S)
    retention, intervals = lineup.rank_retentions(
        {"masked_lm.top1": rates}, {"masked_lm.top1": unigram["masked_lm"]["top1"]}
    )
    found = Compared(
        task=Task.MASKED_LM,
        records=len(chosen),
        models={
            name: _scores(tally, masked, seen.tokens, name == baseline)
            for name, tally in tallies.items()
        },
        references={"unigram": unigram},
        retention=retention,
        intervals=intervals,
        differences=lineup.differences("masked_lm.top1", rates, {"unigram": plainly}),
        said={"unigram": "always predicting the commonest token"},
        softened=example.softened,
        examples=example.surest(),
    )
    first = {"task": found.task, "records": found.records, "masked_positions": masked}
    return first | lineup.result(found)


def check_heldout(heldout: Tokens) -> None:
    """Refuse what `evaluate_masked_lm` would refuse of the text; no model is needed.

    Raises:
        ValueError: no held-out text.
    """
    if len(heldout) == 0:
        raise ValueError(
            "no held-out text to evaluate on: raise corpus.heldout or give corpus.heldout_sources"
        )


def check_vocabularies(loaded: Mapping[str, LoadedModel], baseline: str) -> None:
    """Refuse models that predict different tokens: a smaller vocabulary is easier to be right in.

    Raises:
        ValueError: naming the first model whose vocabulary is another.
    """
    base = loaded[baseline]
    for name, other in loaded.items():
        if other.tokenizer.get_vocab() != base.tokenizer.get_vocab():
            raise ValueError(
                f"models {name} and {baseline} have different vocabularies: their predictions "
                "can't be compared; name models of one vocabulary, or evaluate before "
                "trim_vocabulary"
            )


def _check_lengths(loaded: Mapping[str, LoadedModel], longest: int) -> None:
    name, limit = min(
        ((name, model.max_length) for name, model in loaded.items()), key=lambda each: each[1]
    )
    if longest > limit:
        raise ValueError(
            f"model {name} has positions for {limit} tokens and the longest held-out sequence has "
            f"{longest}: lower corpus.max_length to {limit}"
        )


@dataclass(frozen=True)
class _Answers:
    """A model's hidden states, if it shows them, and its logits at the masked positions."""

    hidden_BLD: Tensor | None
    logits: Callable[[slice], Tensor]  # rows of the K positions -> [k x V]


def _answers(one: LoadedModel, batch: Batch, rows_BL: Tensor) -> _Answers:
    ids_BL, mask_BL = batch.input_ids_BL, batch.attention_mask_BL
    if isinstance(one.model, OnnxModel):
        parts = []  # a graph gives logits at all positions: of few texts at a time
        for start in range(0, len(ids_BL), GRAPH_BATCH):
            some = slice(start, start + GRAPH_BATCH)
            logits_bLV = one.model(input_ids=ids_BL[some], attention_mask=mask_BL[some]).logits
            parts.append(logits_bLV[rows_BL[some]])
        logits_KV = torch.cat(parts)
        return _Answers(None, lambda chunk: logits_KV[chunk])
    signals = masked_lm_signals(one.model, batch, rows_BL)
    features_KD, readout = signals.features_KD, signals.readout
    assert features_KD is not None
    assert readout is not None
    return _Answers(signals.hidden_BLD, lambda chunk: readout.logits(features_KD[chunk], chunk))


def _one_batch(
    loaded: Mapping[str, LoadedModel],
    batch: Batch,
    tallies: Mapping[str, _Tally],
    example: _Example,
    baseline: str,
) -> None:
    rows_BL = batch.gold_BL >= 0
    gold_K = batch.gold_BL[rows_BL]
    sequence_K = rows_BL.nonzero()[:, 0]
    real_BL = batch.attention_mask_BL.bool()
    with torch.inference_mode():
        answers = {name: _answers(one, batch, rows_BL) for name, one in loaded.items()}
        base_hidden = answers[baseline].hidden_BLD
        right = {name: torch.zeros(len(batch.gold_BL)) for name in loaded}
        for start in range(0, len(gold_K), CHUNK):
            chunk = slice(start, min(start + CHUNK, len(gold_K)))
            logs = {n: F.log_softmax(answer.logits(chunk), -1) for n, answer in answers.items()}
            for name, log_kV in logs.items():
                hit_k = _add(tallies[name], log_kV, logs[baseline], gold_K[chunk])
                right[name].index_add_(0, sequence_K[chunk], hit_k.float())
            example.look(loaded, logs, batch, rows_BL, chunk)
        for name, answer in answers.items():
            tallies[name].right_S += right[name].tolist()
            hidden = answer.hidden_BLD
            if hidden is not None and base_hidden is not None and hidden.shape == base_hidden.shape:
                cosine = F.cosine_similarity(hidden[real_BL], base_hidden[real_BL], dim=-1)
                tallies[name].cosine += float(cosine.sum())
            else:
                tallies[name].cosine = float("nan")


def _add(tally: _Tally, log_kV: Tensor, base_kV: Tensor, gold_k: Tensor) -> Tensor:
    """Add one chunk to a model's tally; returns which rows it got right."""
    top_k = log_kV.argmax(-1)
    tally.loss -= float(log_kV.gather(1, gold_k[:, None]).sum())
    tally.kl += float((base_kV.exp() * (base_kV - log_kV)).sum())
    tally.agree += int((top_k == base_kV.argmax(-1)).sum())
    return top_k == gold_k


def _scores(
    tally: _Tally, masked: int, tokens: int, is_baseline: bool
) -> dict[str, dict[str, float]]:
    loss = tally.loss / masked
    scores = {
        "masked_lm": {
            "loss": loss,
            "perplexity": float(np.exp(loss)),
            "top1": sum(tally.right_S) / masked,
        }
    }
    if not is_baseline:
        scores["agreement"] = {"top1": tally.agree / masked, "kl": tally.kl / masked}
        if not np.isnan(tally.cosine):
            scores["hidden"] = {"cosine": tally.cosine / tokens}
    return scores


def _unigram(
    train_counts_V: np.ndarray, special_V: np.ndarray, gold_K: np.ndarray
) -> dict[str, dict[str, float]]:
    """Always predicting by the tokens' frequencies in the training text (add-one smoothed).

    Special tokens count as unseen: they are never masked, so never the right answer.
    """
    counts_V = np.where(special_V, 0, train_counts_V)
    smoothed_V = counts_V + 1.0
    loss = float(-np.log(smoothed_V[gold_K] / smoothed_V.sum()).mean())
    top1 = float((gold_K == int(counts_V.argmax())).mean())
    return {"masked_lm": {"loss": loss, "perplexity": float(np.exp(loss)), "top1": top1}}


def _unigram_rates(
    train_counts_V: np.ndarray,
    special_V: np.ndarray,
    gold: Sequence[np.ndarray],
    masked_S: Sequence[int],
) -> np.ndarray:
    """Right answers by sequence of always predicting the commonest token, scaled as the models'."""
    commonest = int(np.where(special_V, 0, train_counts_V).argmax())
    right_K = np.concatenate(gold) == commonest
    of_K = np.repeat(np.arange(len(masked_S)), masked_S)
    right_S = np.bincount(of_K, weights=right_K, minlength=len(masked_S))
    rates_S: np.ndarray = right_S / np.mean(masked_S)
    return rates_S


class _Example:
    """Collects what the report shows: one softened distribution, and the positions that are
    answered differently by models that are both sure.
    """

    def __init__(self, baseline: str, student: str) -> None:
        self.baseline, self.student = baseline, student
        self.softened: dict[str, Any] | None = None
        self._differing: list[tuple[float, dict[str, Any]]] = []

    def surest(self) -> list[dict[str, Any]]:
        """Positions that the two answer differently, the surest first."""
        return [example for _, example in self._differing]

    def look(
        self,
        loaded: Mapping[str, LoadedModel],
        logs: Mapping[str, Tensor],
        batch: Batch,
        rows_BL: Tensor,
        chunk: slice,
    ) -> None:
        tokenizer = loaded[self.baseline].tokenizer
        base_kV, student_kV = logs[self.baseline], logs[self.student]
        places = rows_BL.nonzero()[chunk]
        (p_t, top_t), (p_s, top_s) = (log.exp().max(-1) for log in (base_kV, student_kV))
        sure = torch.minimum(p_t, p_s)
        if self.softened is None:
            for row in ((p_t > 0.3) & (p_t < 0.7)).nonzero()[:1, 0].tolist():
                b, position = places[row].tolist()
                text = _around(tokenizer, batch.input_ids_BL[b], position)
                self.softened = _soften(tokenizer, base_kV[row], student_kV[row], text)
        least = self._differing[-1][0] if len(self._differing) == SHOWN else 0.0
        differing = ((top_t != top_s) & (sure > least)).nonzero()[:, 0]
        order = differing[sure[differing].argsort(descending=True, stable=True)][:SHOWN]
        for row in order.tolist():
            b, position = places[row].tolist()
            ids = [int(batch.gold_BL[b, position]), int(top_t[row]), int(top_s[row])]
            expected, first, second = (str(tokenizer.convert_ids_to_tokens(i)) for i in ids)
            example = {
                "query": _around(tokenizer, batch.input_ids_BL[b], position),
                "expected": expected,
                "teacher": {"top": first, "p": float(p_t[row])},
                "student": {"top": second, "p": float(p_s[row])},
            }
            self._differing.append((float(sure[row]), example))
        self._differing.sort(key=lambda each: -each[0])
        del self._differing[SHOWN:]


def _around(tokenizer: Any, ids_L: Tensor, position: int, width: int = 14) -> str:
    """The words around a masked position."""
    near = ids_L[max(position - width, 1) : position + width].tolist()
    kept = [i for i in near if i not in tokenizer.all_special_ids or i == tokenizer.mask_token_id]
    return str(tokenizer.decode(kept))


def _soften(tokenizer: Any, base_V: Tensor, student_V: Tensor, text: str) -> dict[str, Any]:
    shown = base_V.topk(8).indices
    whole = base_V.numpy(), student_V.numpy()
    return {
        "text": text,
        "candidates": tokenizer.convert_ids_to_tokens(shown.tolist()),
        "temperatures": {
            f"{t:g}": metrics.softmax(whole[0], t)[shown.numpy()].tolist()
            for t in metrics.TEMPERATURES
        },
        "student": {"1": metrics.softmax(whole[1], 1.0)[shown.numpy()].tolist()},
    }
