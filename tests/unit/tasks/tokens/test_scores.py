"""Entities and their scores against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_labels import bare

from potstill.data.sequences import Sentences
from potstill.evaluation import retention
from potstill.recipe import Task
from potstill.tasks.kinds import kind_of
from potstill.tasks.metrics import Case
from potstill.tasks.tokens.scores import (
    at_words,
    entities,
    predicted_tags,
    tag_scores,
    trivial_tags,
)

LABELS = ["O", "B-per", "I-per", "B-loc", "I-loc"]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", set()),
        ("B-per I-per O B-loc", {("per", 0, 1), ("loc", 3, 3)}),
        ("B-per B-per", {("per", 0, 0), ("per", 1, 1)}),
        # what is not IOB2 counts as conlleval counts it: a stray I- begins an entity
        ("O I-per I-per", {("per", 1, 2)}),
        ("B-per I-loc", {("per", 0, 0), ("loc", 1, 1)}),
        ("B-per I-loc I-per", {("per", 0, 0), ("loc", 1, 1), ("per", 2, 2)}),
        ("I-per O I-per", {("per", 0, 0), ("per", 2, 2)}),
    ],
)
def test_entities(tags: str, expected: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == expected


def test_scores_by_hand() -> None:
    truths = [[1, 2, 0, 3], [0, 0, 1], [3, 4, 4]]
    predicted = [[1, 2, 0, 1], [1, 0, 1], [3, 4, 0]]
    # right: the persons of the first two sentences; wrong: a type, one too many, an end
    scores = tag_scores(truths, [np.array(p) for p in predicted], LABELS)
    assert scores["precision"].value == pytest.approx(2 / 5)
    assert scores["recall"].value == pytest.approx(2 / 4)
    assert scores["f1"].value == pytest.approx(2 * 2 / (5 + 4))
    assert scores["accuracy"].value == pytest.approx(7 / 10)


def test_scores_where_there_is_nothing() -> None:
    scores = tag_scores([[0, 0]], [np.array([0, 0])], LABELS)
    assert [scores[name].value for name in ("f1", "precision", "recall")] == [0, 0, 0]
    assert scores["accuracy"].value == 1


def test_a_resample_scores_what_its_sentences_score() -> None:
    """The formula of the means is the score of the sentences themselves, drawn anew."""
    rng = np.random.default_rng(0)
    truths = [rng.integers(0, 5, 6).tolist() for _ in range(8)]
    predicted = [rng.integers(0, 5, 6) for _ in range(8)]
    whole = tag_scores(truths, predicted, LABELS)
    drawn = rng.integers(0, 8, 8)
    again = tag_scores([truths[n] for n in drawn], [predicted[n] for n in drawn], LABELS)
    for name, scored in whole.items():
        weights = np.bincount(drawn, minlength=8) / 8
        value = float(scored.formula(weights @ scored.items_NS))
        assert value == pytest.approx(again[name].value)
        assert np.isfinite(retention.resampled([scored], 1)).all()


def examples() -> Sentences:
    """Two sentences of three words and one; the last word of the first one has no token."""
    return Sentences(
        ids=np.arange(8, dtype=np.int32),
        offsets=np.array([0, 5, 8]),
        lengths=np.array([5, 3], dtype=np.int32),
        types=None,
        gold=np.array([-100, 1, -100, 2, -100, -100, 0, -100]),
        texts=[("ada lovelace wrote",), ("it",)],
        origins=["x:1", "x:5"],
        word_at=np.array([-1, 0, -1, 1, -1, -1, 0, -1], dtype=np.int32),
        words=[("ada", "lovelace", "wrote"), ("it",)],
        tags=[[1, 2, 0], [0]],
    )


def outputs(*tags: int) -> np.ndarray:
    """Logits that say so at each token."""
    return np.where(np.arange(5) == np.array(tags)[:, None], 3.0, 0.0)


def test_a_word_is_tagged_by_its_first_piece() -> None:
    found = predicted_tags(outputs(4, 1, 4, 2, 4, 4, 3, 4), examples(), other=0)
    assert [tags.tolist() for tags in found] == [[1, 2, 0], [3]]


def test_agreement_is_of_first_pieces_alone() -> None:
    one, two = outputs(0, 1, 0, 2, 0, 0, 3, 0), outputs(4, 1, 4, 1, 4, 4, 3, 4)
    case = Case(Task.TOKEN_CLASSIFICATION, LABELS, examples())
    found = kind_of(Task.TOKEN_CLASSIFICATION).agreement(one, two, case)
    assert found["top1"] == pytest.approx(2 / 3)
    p = np.exp([3, 0, 0, 0, 0]) / np.exp([3, 0, 0, 0, 0]).sum()
    q = np.exp([0, 3, 0, 0, 0]) / np.exp([0, 3, 0, 0, 0]).sum()
    assert found["kl"] == pytest.approx((p * np.log(p / q)).sum() / 3)


def test_words_that_are_tagged_differently() -> None:
    one, two = outputs(0, 1, 0, 2, 0, 0, 3, 0), outputs(0, 1, 0, 4, 0, 0, 0, 0)
    case = Case(Task.TOKEN_CLASSIFICATION, LABELS, examples())
    two[6] *= 2  # of this one both are surer
    shown = kind_of(Task.TOKEN_CLASSIFICATION).show(one, two, case, most=5)
    assert [s["query"] for s in shown] == [
        "it (word 1) in: it",
        "lovelace (word 2) in: ada lovelace wrote",
    ]
    assert (shown[1]["expected"], shown[1]["teacher"]["top"], shown[1]["student"]["top"]) == (
        "I-per",
        "I-per",
        "I-loc",
    )
    assert len(kind_of(Task.TOKEN_CLASSIFICATION).show(one, two, case, most=1)) == 1


def test_trivial_tags() -> None:
    train = bare(
        Sentences,
        words=[("ada", "wrote"), ("ada", "it"), ("ada", "lovelace"), ("it", "lovelace")],
        tags=[[1, 0], [0, 0], [1, 2], []],  # nobody tagged the last
    )
    test = bare(Sentences, words=[("ada", "lovelace", "Ada", "it")], tags=[[1, 2, 0, 0]])
    found = trivial_tags(train, test, LABELS)
    assert found["majority"][0].tolist() == [0, 0, 0, 0]
    assert found["lexicon"][0].tolist() == [1, 2, 0, 0]


def test_outputs_of_another_tokenizer_are_moved_by_word() -> None:
    # ada is two pieces, "lovelace" has no token any more; the second sentence has one token less
    other = Sentences(
        ids=np.arange(6, dtype=np.int32),
        offsets=np.array([0, 4, 6]),
        lengths=np.array([4, 2], dtype=np.int32),
        types=None,
        gold=np.full(6, -100),
        texts=examples().texts,
        origins=examples().origins,
        word_at=np.array([-1, 0, -1, -1, 0, -1], dtype=np.int32),
        words=examples().words,
        tags=examples().tags,
    )
    found_TC = at_words(outputs(4, 1, 2, 4, 3, 4), other, examples(), other=0)
    tags = predicted_tags(found_TC, examples(), other=0)
    assert [each.tolist() for each in tags] == [[1, 0, 0], [3]]
    assert found_TC[1].tolist() == [0, 3, 0, 0, 0]
    assert found_TC[3].tolist() == [20, 0, 0, 0, 0]
