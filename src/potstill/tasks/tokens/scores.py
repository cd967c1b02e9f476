"""Score tags of words: entities by CoNLL's rules, and trivial baselines."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from potstill.data.sequences import Sentences
from potstill.tasks import metrics
from potstill.tasks.metrics import Scored

Entity = tuple[str, int, int]  # type, first word, last word
_SURE = 20.0  # logit above all others' of an answer that is given without a doubt


@dataclass(frozen=True)
class Tagged:
    """Hold a sentence's words, each with its most likely tag and that one's probability (T = 1).

    A word without a token of its own (one of odd characters, or beyond the limit) is O, surely.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    probabilities: tuple[float, ...]


def tagged_words(outputs_TC: np.ndarray, examples: Sentences, names: Sequence[str]) -> list[Tagged]:
    """Return each sentence's words with their tags."""
    shares_TC = softmax(outputs_TC.astype(np.float64), axis=1)
    found = []
    for item, words in enumerate(examples.words):
        tags, sure = ["O"] * len(words), [1.0] * len(words)
        for token in range(examples.offsets[item], examples.offsets[item + 1]):
            word = int(examples.word_at[token])
            if word >= 0:
                best = int(shares_TC[token].argmax())
                tags[word], sure[word] = names[best], float(shares_TC[token, best])
        found.append(Tagged(words, tuple(tags), tuple(sure)))
    return found


def entities(tags: Sequence[str]) -> set[Entity]:
    """Return the entities of some tags (Tjong Kim Sang and De Meulder 2003, section 2.3).

    An entity begins at B-, and at an I- that continues none of its type: a model may give tags that
    are not IOB2.
    """
    found = set()
    begin: int | None = None
    before = "O"
    for number, tag in enumerate([*tags, "O"]):
        begins = tag != "O" and (tag[0] == "B" or before[2:] != tag[2:])
        if begin is not None and (tag == "O" or begins):
            found.add((before[2:], begin, number - 1))
            begin = None
        if begins:
            begin = number
        before = tag
    return found


def predicted_tags(outputs_TC: np.ndarray, examples: Sentences, other: int) -> list[np.ndarray]:
    """Return each sentence's labels by word, as numbers; O, `other`, where a word has no token."""
    found = []
    for item, words in enumerate(examples.words):
        part = slice(examples.offsets[item], examples.offsets[item + 1])
        places_L = examples.word_at[part]
        tags = np.full(len(words), other)
        tags[places_L[places_L >= 0]] = outputs_TC[part][places_L >= 0].argmax(axis=1)
        found.append(tags)
    return found


def at_words(
    outputs_TC: np.ndarray, examples: Sentences, wanted: Sentences, other: int
) -> np.ndarray:
    """Move outputs for sentences from one tokenizer's tokens to another's: [T x C] of `wanted`.

    A word's first piece has the outputs of its first piece; a word that has no token there is
    surely O, whose number is `other`. The rest is 0.
    """
    found_TC = np.zeros((len(wanted.word_at), outputs_TC.shape[1]), dtype=outputs_TC.dtype)
    for item in range(len(wanted)):
        parts = [slice(one.offsets[item], one.offsets[item + 1]) for one in (examples, wanted)]
        here_L, there_L = examples.word_at[parts[0]], wanted.word_at[parts[1]]
        rows = {int(word): row for row, word in enumerate(here_L) if word >= 0}
        for place in np.flatnonzero(there_L >= 0).tolist():
            row = rows.get(int(there_L[place]))
            if row is None:
                found_TC[parts[1].start + place, other] = _SURE
            else:
                found_TC[parts[1].start + place] = outputs_TC[parts[0].start + row]
    return found_TC


def tag_scores(
    truths: Sequence[Sequence[int]], predicted: Sequence[np.ndarray], labels: Sequence[str]
) -> dict[str, Scored]:
    """Score entities, whose type and words must all be right, and the accuracy of words.

    Items are sentences: their labels by word, as numbers.
    """
    counts, words = [], []
    for truth, answer in zip(truths, predicted, strict=True):
        gold, given = ([labels[int(n)] for n in numbers] for numbers in (truth, answer))
        one, two = entities(gold), entities(given)
        counts.append((len(one & two), len(one), len(two)))
        words.append((sum(a == b for a, b in zip(gold, given, strict=True)), len(gold)))
    return {**metrics.overlap(np.array(counts)), "accuracy": metrics.ratio(np.array(words))}


def trivial_tags(
    train: Sentences | None, test: Sentences, labels: Sequence[str]
) -> dict[str, list[np.ndarray]]:
    """Return tags without a model: O everywhere, and each word's most frequent training tag.

    Words that are not in the training sentences get O.
    """
    other = labels.index("O")
    nothing = {"majority": [np.full(len(words), other) for words in test.words]}
    if train is None:
        return nothing
    seen: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for words, tags in zip(train.words, train.tags, strict=True):
        for word, tag in zip(words, tags, strict=False):  # a sentence without tags adds nothing
            seen[word][int(tag)] += 1
    commonest = {word: counts.most_common(1)[0][0] for word, counts in seen.items()}
    lexicon = [np.array([commonest.get(word, other) for word in words]) for words in test.words]
    return {**nothing, "lexicon": lexicon}
