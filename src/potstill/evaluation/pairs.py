"""Score sentence encoders on labeled pairs: their cosines against people's scores (STS)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from potstill.evaluation import retrieval
from potstill.evaluation.lineup import Lineup
from potstill.evaluation.retention import retentions, values_of
from potstill.models import Runtime
from potstill.recipe import Evaluate, ScoredPairs, Task, TaskData
from potstill.tasks import metrics
from potstill.tasks.metrics import Scored
from potstill.tasks.reading import read_task
from potstill.tasks.results import Evaluation
from potstill.tasks.sequence.scores import tfidf_cosines

FEWEST = 10
# keys of `data` in messages about a row; pairs have keys of their own
_KEYS = re.compile(r"\bdata\.(?=(text|label|on_bad_row)[)=])")


@dataclass(frozen=True)
class Pairs:
    """Hold pairs of texts, and how similar people found them.

    Attributes:
        left_out: A sentence about rows that can't be used; empty if there are none.
    """

    first: list[str]
    second: list[str]
    gold_N: np.ndarray
    left_out: str = ""


def read_pairs(settings: ScoredPairs) -> Pairs:
    """Read the pairs of some files.

    Raises:
        ValueError: A row lacks two texts or a number (file:line), there are fewer than 10 pairs,
            or all pairs have the same score.
    """
    # as a regression's examples, none of which is held out
    data = TaskData(
        train=settings.sources,
        dev=settings.sources,
        text=settings.text,
        label=[settings.label],
        on_bad_row=settings.on_bad_row,
    )
    try:
        found = read_task(data, Task.REGRESSION, 0, teacher_labels=None)
    except ValueError as error:
        said = _KEYS.sub("evaluate.pairs.", str(error))
        raise ValueError(said.replace("data.train:", "evaluate.pairs.sources:")) from None
    rows = found.sides["train"]
    gold_N = np.array([row.gold for row in rows], dtype=float)
    if len(rows) < FEWEST or np.ptp(gold_N) == 0:
        raise ValueError(
            f"evaluate.pairs: the files hold {len(rows)} pairs with {len(np.unique(gold_N))} "
            f"different scores. Name files with at least {FEWEST} pairs and 2 different scores."
        )
    first, second = ([row.texts[n] for row in rows] for n in (0, 1))
    return Pairs(first, second, gold_N, _left_out(found.counts))


def _left_out(counts: Mapping[str, int]) -> str:
    reasons = {
        key.removeprefix("train."): count
        for key, count in sorted(counts.items())
        if key.startswith("train.") and key != "train.rows"
    }
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    count, rows = sum(reasons.values()), counts["train.rows"]
    return f"{count} of {rows} rows of evaluate.pairs are skipped ({told})" if reasons else ""


def score_pairs(lineup: Lineup, pairs: Pairs, max_length: int | None = None) -> Evaluation:
    """Correlate the cosine of two texts with their score (Spearman, Pearson).

    Only the first training of each model is scored, with `max_length` tokens per text, or each
    model's own maximum. Retention only where the baseline's correlation is significantly above 0.
    """
    runs = {
        name: [_scores(_cosines(folder, pairs, max_length), pairs)]
        for name, folder in lineup.folders.items()
    }
    chance = {"sts.spearman": 0.0, "sts.pearson": 0.0}
    retention, intervals = retentions(runs, lineup.baseline, chance, lineup.seed)
    references = {}
    if metrics.has_words([*pairs.first, *pairs.second]):
        tfidf = _scores(tfidf_cosines(pairs.first, pairs.second), pairs)
        references["tfidf"] = {"sts": values_of(tfidf)}
    return {
        "models": {name: {"sts": values_of(found)} for name, [found] in runs.items()},
        "references": references,
        "retention": retention,
        "intervals": intervals,
    }


def _scores(cosine_N: np.ndarray, pairs: Pairs) -> dict[str, Scored]:
    return {
        "spearman": metrics.spearman(pairs.gold_N, cosine_N),
        "pearson": metrics.pearson(pairs.gold_N, cosine_N),
    }


def _cosines(folder: Path, pairs: Pairs, max_length: int | None) -> np.ndarray:
    runtime = Runtime.open(folder, Task.SENTENCE_EMBEDDING)
    first, second = (
        retrieval.unit_rows(runtime.embed(texts, max_length=max_length).astype(float))
        for texts in (pairs.first, pairs.second)
    )
    cosine_N: np.ndarray = (first * second).sum(axis=1)
    return cosine_N


def with_pairs(result: Evaluation, lineup: Lineup, stage: Evaluate) -> Evaluation:
    """Add the scores of labeled pairs, if there are any, to an evaluation of sentence encoders."""
    if stage.pairs is None:
        return result
    pairs = read_pairs(stage.pairs)
    whole = cast("dict[str, Any]", result)
    for part, by_model in score_pairs(lineup, pairs, stage.max_length).items():
        for name, scores in cast("dict[str, Any]", by_model).items():
            whole[part][name] = whole[part].get(name, {}) | scores
    if pairs.left_out:
        result["warnings"] = [*result.get("warnings", []), pairs.left_out]
    return result
