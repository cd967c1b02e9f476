"""Score answers: the best span of all windows, SQuAD's scores, and trivial baselines."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from potstill.data.sequences import Questions
from potstill.tasks import metrics
from potstill.tasks.metrics import Scored

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_SENTENCE = re.compile(r"[^.!?]*[.!?]+[\"')\]]*\s*|[^.!?]+$")


@dataclass(frozen=True)
class Given:
    """Hold a model's answer: "" for none, and its probability in its window."""

    text: str
    probability: float


def best_answers(outputs_T2: np.ndarray, examples: Questions) -> list[Given]:
    """Return each question's answer: the span of the largest sum of start and end logits.

    It begins and ends in the context, is of `longest` tokens at most, and is of any of the
    question's windows. Where questions may lack an answer, none is given if the first token's sum,
    the least of all windows, is larger (Devlin et al. 2019, section 4.3).

    Args:
        outputs_T2: start and end logits at every token of every window.
    """
    best: list[tuple[float, Given]] = [(-np.inf, Given("", 1.0))] * examples.items
    none: list[tuple[float, Given]] = [(np.inf, Given("", 1.0))] * examples.items
    for window, item in enumerate(examples.of.tolist()):
        found, nothing = _window_answers(outputs_T2, examples, window)
        if found is not None and found[0] > best[item][0]:
            best[item] = found
        if nothing[0] < none[item][0]:
            none[item] = nothing
    if not examples.may_lack:
        return [given for _, given in best]
    return [
        nothing if score >= found_score else found
        for (found_score, found), (score, nothing) in zip(best, none, strict=True)
    ]


def _window_answers(
    outputs_T2: np.ndarray, examples: Questions, window: int
) -> tuple[tuple[float, Given] | None, tuple[float, Given]]:
    """Return a window's best span and no answer, each with its sum of logits."""
    part = slice(examples.offsets[window], examples.offsets[window + 1])
    places_L2, logits_L2 = examples.spans[part], outputs_T2[part].astype(np.float64)
    context = np.flatnonzero(places_L2[:, 0] >= 0)
    allowed = np.union1d([0], context)
    nothing = float(logits_L2[0].sum())
    log_norm = sum(float(-log_softmax(logits_L2[allowed, side])[0]) for side in (0, 1))
    log_norm += nothing  # of both distributions: p = exp(sum - log_norm)
    none = nothing, Given("", float(np.exp(nothing - log_norm)))
    if len(context) == 0:
        return None, none
    start_K, end_K = logits_L2[context, 0], logits_L2[context, 1]
    top: tuple[float, int, int] | None = None
    for more in range(min(examples.longest, len(context))):
        sums = start_K[: len(context) - more] + end_K[more:]
        at = int(sums.argmax())
        if top is None or sums[at] > top[0]:
            top = float(sums[at]), at, at + more
    assert top is not None
    score, first, last = top
    text = examples.texts[window][1]
    begin, end = int(places_L2[context[first], 0]), int(places_L2[context[last], 1])
    return (score, Given(text[begin:end].strip(), float(np.exp(score - log_norm)))), none


def normalized(text: str) -> str:
    """Normalize an answer as SQuAD does (Rajpurkar et al. 2016, section 6.1).

    Lower case, no punctuation, no articles, single spaces.
    """
    bare = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(given: str, truths: Sequence[str]) -> float:
    """Return 1 where the answer is a true answer, else 0; no truths mean no answer."""
    return max(float(normalized(given) == normalized(truth)) for truth in _wanted(truths))


def answer_f1(given: str, truths: Sequence[str]) -> float:
    """Return F1 of the words of the answer and of the true one that is nearest.

    Without an answer on either side it is 1 if there is none on the other, else 0 (Rajpurkar et al.
    2018, SQuAD 2.0).
    """
    return max(_word_f1(normalized(given).split(), truth) for truth in _wanted(truths))


def _wanted(truths: Sequence[str]) -> list[str]:
    """Drop true answers of nothing but articles and punctuation."""
    return [truth for truth in truths if normalized(truth)] or [""]


def _word_f1(given: list[str], truth: str) -> float:
    wanted = normalized(truth).split()
    if not given or not wanted:
        return float(given == wanted)
    both = sum((Counter(given) & Counter(wanted)).values())
    return 2 * both / (len(given) + len(wanted))


def answer_scores(given: Sequence[str], examples: Questions) -> dict[str, Scored]:
    """Return exact match and F1, means over questions."""
    pairs = list(zip(given, examples.answers, strict=True))
    exact = np.array([exact_match(text, truths) for text, truths in pairs])
    overlap = np.array([answer_f1(text, truths) for text, truths in pairs])
    return {"exact_match": metrics.mean(exact), "f1": metrics.mean(overlap)}


def trivial_answers(test: Questions) -> dict[str, list[str]]:
    """Return answers without a model: none, and the likeliest sentence of the context."""
    return {
        "majority": [""] * test.items,
        "sentence": [likeliest_sentence(*texts) for texts in test.questions],
    }


def likeliest_sentence(question: str, context: str) -> str:
    """Return the first sentence of a context that shares the most words with a question."""
    asked = set(normalized(question).split())
    sentences = [found.strip() for found in _SENTENCE.findall(context) if found.strip()]
    return max(sentences, key=lambda s: len(asked & set(normalized(s).split())), default="")
