"""Score sentence encoders on held-out text: retrieval, similarity and topics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from potstill.data.sources import Record
from potstill.evaluation import retrieval
from potstill.evaluation.lineup import Lineup, counted
from potstill.evaluation.retention import values_of
from potstill.models import Runtime
from potstill.models.onnx_models import OnnxModel
from potstill.recipe import Evaluate, Task
from potstill.tasks import metrics
from potstill.tasks.metrics import Scored
from potstill.tasks.results import Evaluation

SCALE = 20.0  # for the softened example: logits = scale * cosine similarity
HIDDEN_TEXTS = 96  # texts whose token vectors are compared with the baseline's

Parts = dict[str, dict[str, Scored]]  # such as {"retrieval": {"mrr": ...}}


@dataclass(frozen=True)
class _Found:
    """Hold one model's vectors and retrieval results; empty ranks where there are no queries."""

    passages_PD: np.ndarray
    queries_QD: np.ndarray
    ranks_Q: np.ndarray  # of each query's own passage
    tops_Q: np.ndarray  # the passage that scores highest
    right_P: np.ndarray | None  # whether a linear probe finds a passage's topic

    def cosines_P(self, query: int) -> np.ndarray:
        """Return the similarity of all passages to one query, float64."""
        query_1D = self.queries_QD[query : query + 1].astype(np.float64)
        [(_, scores_1P)] = retrieval.cosine_blocks(query_1D, self.passages_PD)
        cosines: np.ndarray = scores_1P[0]
        return cosines


def evaluate_embeddings(
    lineup: Lineup,
    records: Sequence[Record],
    settings: Evaluate,
    progress: Callable[[float], None] = lambda _: None,
) -> Evaluation:
    """Score retrieval of passages by queries, similarity to the baseline's space, and topics.

    Only the first training of each model is scored; exact duplicates of a passage are skipped.
    `progress` receives the finished fraction, 0 to 1. Raises as `check_records`.
    """
    text, seed = _Texts.of(records, settings), lineup.seed
    work = len(lineup.order) * (2 if text.queries else 1) * len(text.passages) + 1
    advance = counted(work, progress)
    hidden = _hidden_cosines(lineup, text.passages[:HIDDEN_TEXTS], settings.max_length)
    found: dict[str, _Found] = {}
    for name, folder in lineup.folders.items():
        runtime = Runtime.open(folder, Task.SENTENCE_EMBEDDING)
        found[name] = _answers(runtime, text, settings, seed, advance)
    base, other = found[lineup.baseline], found[lineup.shown]
    parts = {name: _scored(one.ranks_Q, one.right_P) for name, one in found.items()}
    tfidf, correlation = _tfidf(text, seed), retrieval.similarity_correlation
    alone = lineup.shown == lineup.baseline
    first = next((f"{part}.{metric}" for part in tfidf for metric in tfidf[part]), None)
    compared = lineup.compare(
        {name: [_by_metric(own)] for name, own in parts.items()},
        {"tfidf": [_by_metric(tfidf)]},
        _chance(text),
        None if alone else first,
        {"tfidf": "TF-IDF"},
    )
    return {
        "task": Task.SENTENCE_EMBEDDING,
        "records": len(text.passages),
        "baseline": lineup.baseline,
        "models": {
            name: _values(
                parts[name],
                similarity={"pearson": correlation(one.passages_PD, base.passages_PD)},
                hidden=hidden.get(name, {}),
            )
            for name, one in found.items()
        },
        "references": {"tfidf": _values(tfidf)},
        **compared,
        "softened": _softened(base, other, text),
        "examples": _examples(base, other, text),
    }


def check_records(records: Sequence[Record], settings: Evaluate) -> None:
    """Refuse held-out records that `evaluate_embeddings` would refuse; no model is needed.

    Raises:
        ValueError: There are fewer than 10 distinct passages, a passage, query or label is null or
            missing, or labels are too rare for the topic probe.
    """
    _Texts.of(records, settings)


@dataclass(frozen=True)
class _Texts:
    """Hold the distinct records' texts; `labels` only where there are at least two topics."""

    passages: list[str]
    queries: list[str] | None
    labels: list[str] | None

    @staticmethod
    def of(records: Sequence[Record], settings: Evaluate) -> _Texts:
        distinct = _distinct(records, settings)

        def column(key: str, name: str | None) -> list[str] | None:
            return None if name is None else [_value(record, key, name) for record in distinct]

        passages = column("passage", settings.passage or "text")
        assert passages is not None
        queries, labels = column("query", settings.query), column("label", settings.label)
        if labels is not None and len(set(labels)) < 2:
            labels = None
        if labels is not None:
            retrieval.check_labels(np.array(labels))
        return _Texts(passages, queries, labels)


def _value(record: Record, key: str, column: str) -> str:
    if column not in record.columns:
        raise ValueError(
            f"{record.origin}: the {key} column '{column}' is null or missing. Fill it in, or "
            f"remove the record. Its columns are {', '.join(record.columns)}."
        )
    return record.columns[column]


def _distinct(records: Sequence[Record], settings: Evaluate) -> list[Record]:
    """Return each passage once: a duplicate would make the right answer ambiguous."""
    column = settings.passage or "text"
    by_text: dict[str, Record] = {}
    for record in records:
        by_text.setdefault(" ".join(_value(record, "passage", column).split()), record)
    distinct = [record for text, record in by_text.items() if text][: settings.max_records]
    if len(distinct) < 10:
        raise ValueError(
            f"corpus.heldout: only {len(distinct)} distinct records are held out; an evaluation "
            "needs at least 10. Raise corpus.heldout, or set corpus.heldout_sources."
        )
    return distinct


def _answers(
    runtime: Runtime, text: _Texts, settings: Evaluate, seed: int, advance: Callable[[int], None]
) -> _Found:
    limit = settings.max_length
    passages_PD = runtime.embed(text.passages, max_length=limit, progress=advance)
    queries_QD, ranks_Q, tops_Q = passages_PD[:0], *np.zeros((2, 0), dtype=np.int64)
    if text.queries is not None:
        queries_QD = runtime.embed(text.queries, max_length=limit, progress=advance)
        ranks_Q, tops_Q = retrieval.own_ranks(retrieval.cosine_blocks(queries_QD, passages_PD))
    right_P = None
    if text.labels is not None:
        right_P = retrieval.probe_correct(passages_PD, np.array(text.labels), seed=seed)
    return _Found(passages_PD, queries_QD, ranks_Q, tops_Q, right_P)


def _scored(ranks_Q: np.ndarray, right_P: np.ndarray | None) -> Parts:
    """Score what was asked; each score is a mean over items."""
    found: Parts = {}
    if len(ranks_Q):
        found["retrieval"] = {
            "mrr": retrieval.mean_reciprocal_rank(ranks_Q),
            "recall_at_1": retrieval.recall_at_k(ranks_Q, 1),
        }
    if right_P is not None:
        found["topic_probe"] = {"accuracy": metrics.mean(right_P)}
    return found


def _tfidf(text: _Texts, seed: int) -> Parts:
    """Score TF-IDF; empty for texts without a word."""
    if not metrics.has_words(text.passages):
        return {}
    ranks_Q, right_P = np.zeros(0, dtype=np.int64), None
    if text.queries is not None:
        ranks_Q, _ = retrieval.own_ranks(retrieval.tfidf_retrieval(text.queries, text.passages))
    if text.labels is not None:
        right_P = retrieval.tfidf_probe(text.passages, np.array(text.labels), seed=seed)
    return _scored(ranks_Q, right_P)


def _chance(text: _Texts) -> dict[str, float]:
    """Return score name -> what guessing scores (see `retention.retentions`)."""
    count, chance = len(text.passages), {}
    if text.queries is not None:
        chance["retrieval.mrr"] = float((1 / np.arange(1, count + 1)).mean())
        chance["retrieval.recall_at_1"] = 1 / count
    if text.labels is not None:
        chance["topic_probe.accuracy"] = max(Counter(text.labels).values()) / count
    return chance


def _by_metric(parts: Parts) -> dict[str, Scored]:
    return {metric: scored for part in parts.values() for metric, scored in part.items()}


def _values(parts: Parts, **more: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the values of all scores, in the order of result.json."""
    found = {**{part: values_of(scores) for part, scores in parts.items()}, **more}
    order = ("retrieval", "similarity", "topic_probe", "hidden")
    return {part: dict(found[part]) for part in order if part in found}


def _hidden_cosines(
    lineup: Lineup, texts: Sequence[str], max_length: int | None
) -> dict[str, dict[str, float]]:
    """Return the mean cosine of last hidden states with the baseline's, over shared tokens."""
    base = Runtime.open(lineup.folders[lineup.baseline], Task.SENTENCE_EMBEDDING)
    result = {lineup.baseline: {"cosine": 1.0}}
    for name in lineup.order[1:]:
        other = Runtime.open(lineup.folders[name], Task.SENTENCE_EMBEDDING)
        same_width = other.loaded.model.config.hidden_size == base.loaded.model.config.hidden_size
        same_tokens = other.loaded.tokenizer.get_vocab() == base.loaded.tokenizer.get_vocab()
        if not (same_width and same_tokens and _shows_hidden(base) and _shows_hidden(other)):
            continue
        limits = other.loaded.max_length, base.loaded.max_length
        limit = min(*limits, max_length or limits[1])
        both = zip(base.hidden(texts, 32, limit), other.hidden(texts, 32, limit), strict=True)
        cosines = [
            torch.cosine_similarity(hidden_b[mask.bool()], hidden_o[mask.bool()], dim=-1).cpu()
            for (_, hidden_b, mask), (_, hidden_o, _) in both
        ]
        result[name] = {"cosine": float(torch.cat(cosines).mean())}
    return result


def _shows_hidden(runtime: Runtime) -> bool:
    """Check whether a model outputs token vectors; some ONNX graphs output only text vectors."""
    model = runtime.loaded.model
    return not isinstance(model, OnnxModel) or "last_hidden_state" in model.outputs


def _softened(base: _Found, student: _Found, text: _Texts) -> dict[str, Any] | None:
    """Return one query's probabilities of its eight nearest passages at several temperatures."""
    if text.queries is None:
        return None
    # the least certain query that the baseline still gets right: there is something to see
    blocks = retrieval.cosine_blocks(base.queries_QD, base.passages_PD)
    certainties = [metrics.softmax(scores_BP * SCALE, 1.0).max(axis=1) for _, scores_BP in blocks]
    certainty_Q = np.concatenate(certainties)
    query = int(np.argmin(np.abs(certainty_Q - 0.5) + 10 * (base.ranks_Q > 1)))
    logits_P = base.cosines_P(query) * SCALE
    shown = np.argsort(-logits_P, kind="stable")[:8]
    names, other_P = [text.queries[p] for p in shown], student.cosines_P(query) * SCALE
    return metrics.softened(text.queries[query], names, logits_P, other_P, shown)


def _examples(base: _Found, student: _Found, text: _Texts) -> list[dict[str, Any]]:
    """Return queries that baseline and student answer differently, largest difference first."""
    if text.queries is None:
        return []
    ranks_t, ranks_s = base.ranks_Q, student.ranks_Q
    tops_t, tops_s = base.tops_Q, student.tops_Q
    differing = np.flatnonzero(tops_t != tops_s).tolist()
    differing.sort(key=lambda q: -abs(np.log(ranks_t[q]) - np.log(ranks_s[q])))
    return [
        {
            "query": text.queries[q],
            "expected": text.queries[q],
            "teacher": {"rank": int(ranks_t[q]), "top": text.queries[int(tops_t[q])]},
            "student": {"rank": int(ranks_s[q]), "top": text.queries[int(tops_s[q])]},
        }
        for q in differing[:50]
    ]
