"""Score masked-LM models on held-out text: how well they predict, how alike they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.data import Batch, Masker, Tokens, collate
from potstill.data.masking import EVALUATION_EPOCH
from potstill.evaluation.lineup import Lineup
from potstill.models import LoadedModel, load_model
from potstill.models.onnx_models import OnnxModel
from potstill.recipe import Evaluate, Task
from potstill.tasks import metrics
from potstill.tasks.heads import masked_lm_signals
from potstill.tasks.metrics import Scored
from potstill.tasks.results import Evaluation

BATCH = 32
GRAPH_BATCH = 4  # for an ONNX graph
SHOWN = 50  # examples that the report may choose from
CHUNK = 256  # rows of logits that exist at a time, per model


@dataclass
class _Tally:
    """Sum up one model's answers; right ones by sequence, for the intervals."""

    loss: float = 0.0
    kl: float = 0.0
    agree: int = 0
    cosine: float = 0.0
    right_S: list[float] = field(default_factory=list)


@dataclass
class _Seen:
    """Count what the models were asked: tokens, masked positions by sequence, gold by batch."""

    tokens: int = 0
    masked_S: list[int] = field(default_factory=list)
    gold: list[np.ndarray] = field(default_factory=list)

    def add(self, batch: Batch) -> None:
        is_masked_BL = batch.gold_BL >= 0
        self.tokens += int(batch.attention_mask_BL.sum())
        self.masked_S += is_masked_BL.sum(1).tolist()
        self.gold.append(batch.gold_BL[is_masked_BL].numpy())


@dataclass(frozen=True)
class MaskedText:
    """Hold the text that masked-LM models are scored on.

    Attributes:
        heldout: The text, masked the same way for all models.
        train_counts_V: Frequency of each token in the training text: the unigram reference.
        masker: Masks the text.
    """

    heldout: Tokens
    train_counts_V: np.ndarray
    masker: Masker


def evaluate_masked_lm(
    lineup: Lineup,
    text: MaskedText,
    settings: Evaluate,
    progress: Callable[[float], None] = lambda _: None,
) -> Evaluation:
    """Score loss and top-1 at the masked positions, and agreement with the baseline.

    All models see the same masks, which never change. T = 1. Only the first training of each model
    is scored. `progress` receives the finished fraction, 0 to 1.

    Raises:
        ValueError: There is no held-out text, models have different vocabularies, or a sequence is
            longer than a model's maximum sequence length.
    """
    heldout, baseline = text.heldout, lineup.baseline
    check_heldout(heldout)
    loaded = {name: load_model(folder, Task.MASKED_LM) for name, folder in lineup.folders.items()}
    check_vocabularies(loaded, baseline)
    chosen = np.arange(len(heldout))[: settings.max_records]
    _check_lengths(loaded, int(heldout.lengths[chosen].max()))
    chosen = chosen[np.argsort(heldout.lengths[chosen], kind="stable")]
    pad_id = loaded[baseline].tokenizer.pad_token_id
    tallies, seen = {name: _Tally() for name in lineup.order}, _Seen()
    example = _Example(baseline, lineup.shown)
    mask = text.masker.of_epoch(lineup.seed, EVALUATION_EPOCH)
    for start in range(0, len(chosen), BATCH):
        rows = chosen[start : start + BATCH]
        batch = collate(heldout, rows, pad_id, mask)
        seen.add(batch)
        _one_batch(loaded, batch, tallies, example)
        progress(min(start + BATCH, len(chosen)) / len(chosen))
    unigram, plainly = _unigram(text, seen)
    compared = lineup.compare(
        {name: [_top1(np.array(tally.right_S), seen)] for name, tally in tallies.items()},
        {"unigram": [_top1(plainly, seen)]},
        {"masked_lm.top1": unigram["masked_lm"]["top1"]},
        "masked_lm.top1",
        {"unigram": "always predicting the most frequent token"},
    )
    return {
        "task": Task.MASKED_LM,
        "records": len(chosen),
        "masked_positions": sum(seen.masked_S),
        "baseline": baseline,
        "models": {name: _scores(one, seen, name == baseline) for name, one in tallies.items()},
        "references": {"unigram": unigram},
        **compared,
        "softened": example.softened,
        "examples": [one for _, one in example.differing],
    }


def _top1(right_S: np.ndarray, seen: _Seen) -> dict[str, Scored]:
    """Score top-1 by sequence, scaled so that the mean is the top-1 of all positions."""
    return {"top1": metrics.mean(right_S / np.mean(seen.masked_S))}


def check_heldout(heldout: Tokens) -> None:
    """Refuse held-out text that `evaluate_masked_lm` would refuse; no model is needed."""
    if len(heldout) == 0:
        raise ValueError(
            "corpus.heldout: no text is held out to evaluate on. Raise corpus.heldout, or set "
            "corpus.heldout_sources."
        )


def check_vocabularies(loaded: Mapping[str, LoadedModel], baseline: str) -> None:
    """Refuse models that predict different tokens: a smaller vocabulary is easier to predict."""
    base = loaded[baseline]
    for name, other in loaded.items():
        if other.tokenizer.get_vocab() != base.tokenizer.get_vocab():
            raise ValueError(
                f"evaluate.models: {name} and {baseline} have different vocabularies, so their "
                "predictions are not comparable. Name models of one vocabulary, or evaluate before "
                "trim_vocabulary."
            )


def _check_lengths(loaded: Mapping[str, LoadedModel], longest: int) -> None:
    name = min(loaded, key=lambda each: loaded[each].max_length)
    limit = loaded[name].max_length
    if longest > limit:
        raise ValueError(
            f"corpus.max_length: the longest held-out sequence has {longest} tokens, and the "
            f"maximum sequence length of {name} is {limit}. Set corpus.max_length={limit}."
        )


def _answers(
    one: LoadedModel, batch: Batch, rows_BL: Tensor
) -> tuple[Tensor | None, Callable[[slice], Tensor]]:
    """Return a model's hidden states, if any, and its logits by rows of the K masked positions."""
    ids_BL, mask_BL = batch.input_ids_BL, batch.attention_mask_BL
    if isinstance(one.model, OnnxModel):
        parts = []  # a graph outputs logits at all positions: a few texts at a time
        for start in range(0, len(ids_BL), GRAPH_BATCH):
            some = slice(start, start + GRAPH_BATCH)
            logits_bLV = one.model(input_ids=ids_BL[some], attention_mask=mask_BL[some]).logits
            parts.append(logits_bLV[rows_BL[some]])
        logits_KV = torch.cat(parts)
        return None, lambda chunk: logits_KV[chunk]
    signals = masked_lm_signals(one, batch, rows_BL)
    features_KD, readout = signals.features_KD, signals.readout
    assert features_KD is not None
    assert readout is not None
    return signals.hidden_BLD, lambda chunk: readout.logits(features_KD[chunk], chunk)


def _one_batch(
    loaded: Mapping[str, LoadedModel],
    batch: Batch,
    tallies: Mapping[str, _Tally],
    example: _Example,
) -> None:
    baseline = example.baseline
    rows_BL = batch.gold_BL >= 0
    gold_K = batch.gold_BL[rows_BL]
    sequence_K = rows_BL.nonzero()[:, 0]
    real_BL = batch.attention_mask_BL.bool()
    with torch.inference_mode():
        answers = {name: _answers(one, batch, rows_BL) for name, one in loaded.items()}
        base_hidden, _ = answers[baseline]
        right = {name: torch.zeros(len(batch.gold_BL)) for name in loaded}
        for start in range(0, len(gold_K), CHUNK):
            chunk = slice(start, min(start + CHUNK, len(gold_K)))
            logs = {n: F.log_softmax(logits(chunk), -1) for n, (_, logits) in answers.items()}
            for name, log_kV in logs.items():
                hit_k = _add(tallies[name], log_kV, logs[baseline], gold_K[chunk])
                right[name].index_add_(0, sequence_K[chunk], hit_k.float())
            example.look(loaded, logs, batch, rows_BL, chunk)
        for name, (hidden, _) in answers.items():
            tallies[name].right_S += right[name].tolist()
            if hidden is not None and base_hidden is not None and hidden.shape == base_hidden.shape:
                cosine = F.cosine_similarity(hidden[real_BL], base_hidden[real_BL], dim=-1)
                tallies[name].cosine += float(cosine.sum())
            else:
                tallies[name].cosine = float("nan")


def _add(tally: _Tally, log_kV: Tensor, base_kV: Tensor, gold_k: Tensor) -> Tensor:
    """Add one chunk to a model's tally, and return which rows it got right."""
    top_k = log_kV.argmax(-1)
    tally.loss -= float(log_kV.gather(1, gold_k[:, None]).sum())
    tally.kl += float((base_kV.exp() * (base_kV - log_kV)).sum())
    tally.agree += int((top_k == base_kV.argmax(-1)).sum())
    return top_k == gold_k


def _scores(tally: _Tally, seen: _Seen, is_baseline: bool) -> dict[str, dict[str, float]]:
    masked = sum(seen.masked_S)
    loss, top1 = tally.loss / masked, sum(tally.right_S) / masked
    scores = {"masked_lm": {"loss": loss, "perplexity": float(np.exp(loss)), "top1": top1}}
    if not is_baseline:
        scores["agreement"] = {"top1": tally.agree / masked, "kl": tally.kl / masked}
        if not np.isnan(tally.cosine):
            scores["hidden"] = {"cosine": tally.cosine / seen.tokens}
    return scores


def _unigram(text: MaskedText, seen: _Seen) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """Score predicting by the tokens' frequencies in the training text (add-one smoothed).

    Special tokens count as unseen: they are never masked, so never the right answer.

    Returns:
        Scores, and the number of right answers by sequence.
    """
    counts_V = np.where(text.masker.special_V, 0, text.train_counts_V)
    smoothed_V, gold_K = counts_V + 1.0, np.concatenate(seen.gold)
    loss = float(-np.log(smoothed_V[gold_K] / smoothed_V.sum()).mean())
    right_K = gold_K == int(counts_V.argmax())
    top1 = float(right_K.mean())
    of_K = np.repeat(np.arange(len(seen.masked_S)), seen.masked_S)
    right_S = np.bincount(of_K, weights=right_K, minlength=len(seen.masked_S))
    scores = {"loss": loss, "perplexity": float(np.exp(loss)), "top1": top1}
    return {"masked_lm": scores}, right_S


@dataclass
class _Example:
    """Collect one softened distribution, and positions that two sure models answer differently."""

    baseline: str
    student: str
    softened: dict[str, Any] | None = None
    differing: list[tuple[float, dict[str, Any]]] = field(default_factory=list)  # surest first

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
                shown_8 = base_kV[row].topk(8).indices
                names = tokenizer.convert_ids_to_tokens(shown_8.tolist())
                both = base_kV[row].numpy(), student_kV[row].numpy()
                self.softened = metrics.softened(text, names, *both, shown_8.numpy())
        least = self.differing[-1][0] if len(self.differing) == SHOWN else 0.0
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
            self.differing.append((float(sure[row]), example))
        self.differing.sort(key=lambda each: -each[0])
        del self.differing[SHOWN:]


def _around(tokenizer: Any, ids_L: Tensor, position: int, width: int = 14) -> str:
    """Return the words around a masked position."""
    near = ids_L[max(position - width, 1) : position + width].tolist()
    kept = [i for i in near if i not in tokenizer.all_special_ids or i == tokenizer.mask_token_id]
    return str(tokenizer.decode(kept))
