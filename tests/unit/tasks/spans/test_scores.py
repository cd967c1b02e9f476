"""Answers: the best span against all spans one by one, SQuAD's scores by hand."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_labels import bare

from potstill.data.sequences import Questions
from potstill.recipe import Task
from potstill.tasks.kinds import kind_of
from potstill.tasks.metrics import Case
from potstill.tasks.spans.scores import (
    Given,
    answer_f1,
    answer_scores,
    best_answers,
    exact_match,
    likeliest_sentence,
    normalized,
    trivial_answers,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel\tTower!", "eiffel tower"),
        ("a an the", ""),
        ("U.S.", "us"),
        ("another theory", "another theory"),  # articles are words of their own
        ("state-of-the-art", "stateoftheart"),
        ("Ada's (first) \u201cquoted\u201d", "adas first \u201cquoted\u201d"),
        ("", ""),
    ],
)
def test_normalized(text: str, expected: str) -> None:
    assert normalized(text) == expected


@pytest.mark.parametrize(
    ("given", "truths", "exact", "f1"),
    [
        ("the Norse leader", ["Norse leader", "Rollo"], 1, 1),
        ("Rollo", ["Norse leader", "Rollo."], 1, 1),
        # two of three words, two of two: precision 2/3, recall 1
        ("10th 11th centuries", ["10th centuries"], 0, 0.8),
        # the nearest of several
        ("in the 10th century", ["century", "10th and 11th centuries", "10th century"], 0, 0.8),
        # a word counts as often as it is there
        ("very very old", ["very old"], 0, 0.8),
        ("Paris", ["London"], 0, 0),
        ("", [], 1, 1),
        ("Paris", [], 0, 0),
        ("", ["Paris"], 0, 0),
        ("the", [], 1, 1),  # nothing is left of it
        ("Paris", ["the", "Paris"], 1, 1),
    ],
)
def test_scores(given: str, truths: list[str], exact: float, f1: float) -> None:
    assert exact_match(given, truths) == exact
    assert answer_f1(given, truths) == pytest.approx(f1)


def test_scores_are_means_over_questions() -> None:
    answers = [["Paris"], ["10th centuries"], []]
    items = bare(Questions, questions=[("q", "c")] * 3, answers=answers)
    found = answer_scores(["paris", "10th 11th centuries", "no"], items)
    assert found["exact_match"].value == pytest.approx(1 / 3)
    assert found["f1"].value == pytest.approx(1.8 / 3)


# --- decoding -------------------------------------------------------------------------------------

CONTEXT = "ab cd ef gh ij"


def windows(*, longest: int = 3, may_lack: bool = True) -> Questions:
    """A question with two windows that overlap, and one with one: [first, q, sep, context, sep]."""
    spans = [(0, 2), (3, 5), (6, 8), (9, 11), (12, 14)]
    outside = [(-1, -1)] * 3
    each = [[*outside, *spans[:3], (-1, -1)], [*outside, *spans[2:], (-1, -1)]]
    each.append([*outside, *spans, (-1, -1)])
    lengths = np.array([len(one) for one in each], dtype=np.int32)
    return Questions(
        ids=np.zeros(lengths.sum(), dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        lengths=lengths,
        types=None,
        gold=np.zeros((3, 2), dtype=np.int64),
        texts=[("q", CONTEXT)] * 3,
        origins=["x[0]", "x[0]", "x[1]"],
        spans=np.array([span for one in each for span in one], dtype=np.int32),
        of=np.array([0, 0, 1]),
        questions=[("q", CONTEXT)] * 2,
        answers=[["cd"], []],
        longest=longest,
        may_lack=may_lack,
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("may_lack", [True, False])
@pytest.mark.parametrize("longest", [1, 3])
def test_the_best_span_of_all(seed: int, may_lack: bool, longest: int) -> None:
    given = windows(longest=longest, may_lack=may_lack)
    outputs = np.random.default_rng(seed).normal(size=(len(given.ids), 2)) * 3
    outputs[::7] -= 1.0
    for item, numbers in enumerate(([0, 1], [2])):
        best, text, none = -np.inf, "", np.inf
        for window in numbers:
            first = int(given.offsets[window])
            none = min(none, outputs[first].sum())
            for start in range(first, int(given.offsets[window + 1])):
                for end in range(start, int(given.offsets[window + 1])):
                    inside = given.spans[start][0] >= 0 and given.spans[end][0] >= 0
                    total = outputs[start, 0] + outputs[end, 1]
                    if inside and end - start < longest and total > best:
                        best = total
                        text = CONTEXT[given.spans[start][0] : given.spans[end][1]]
        expected = "" if may_lack and none >= best else text
        assert best_answers(outputs.astype(np.float32), given)[item].text == expected


def test_the_probability_is_that_of_start_and_end() -> None:
    given = windows(may_lack=False)
    outputs = np.random.default_rng(0).normal(size=(len(given.ids), 2))
    own = outputs[14:]  # the second question's window, whose context begins at token 3
    own[3] += 6
    answer = best_answers(outputs, given)[1]
    assert answer.text == "ab"
    # over the context and the first token: the rest can't be an answer
    e = np.exp(own[[0, 3, 4, 5, 6, 7]])
    assert answer.probability == pytest.approx((e[1] / e.sum(axis=0)).prod())
    own[0] += 20
    given = windows(may_lack=True)
    e = np.exp(own[[0, 3, 4, 5, 6, 7]])
    answer = best_answers(outputs, given)[1]
    assert answer.text == ""
    assert answer.probability == pytest.approx((e[0] / e.sum(axis=0)).prod())


def test_a_window_without_a_context_gives_none() -> None:
    given = windows(may_lack=False)
    given.spans[:] = -1
    assert [a.text for a in best_answers(np.zeros((len(given.ids), 2)), given)] == ["", ""]


# --- beside them ----------------------------------------------------------------------------------


def test_the_sentence_that_shares_most_words() -> None:
    context = 'Ada wrote it. "Babbage built the engine!" He never finished it.'
    assert likeliest_sentence("Who built the engine?", context) == '"Babbage built the engine!"'
    assert likeliest_sentence("Who?", context) == "Ada wrote it."
    assert likeliest_sentence("Who finished it?", context) == "He never finished it."
    assert likeliest_sentence("Who?", "no end") == "no end"
    asked = [("who wrote", context), ("what", context)]
    items = bare(Questions, questions=asked, answers=[["Ada"], []])
    found = trivial_answers(items)
    assert found == {"majority": ["", ""], "sentence": ["Ada wrote it.", "Ada wrote it."]}


def test_agreement_and_examples() -> None:
    one = [Given("the Paris", 0.9), Given("", 0.8), Given("10th century", 0.4)]
    two = [Given("Paris", 0.1), Given("Rome", 0.5), Given("10th", 0.9)]
    kind, answers = kind_of(Task.QUESTION_ANSWERING), [["Paris"], [], ["10th", "10th"]]
    items = bare(Questions, questions=[("q", "c")] * 3, answers=answers)
    case = Case(Task.QUESTION_ANSWERING, ["start", "end"], items)
    found = kind.agreement(one, two, case)
    assert found["top1"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx((1 + 0 + 2 / 3) / 3)
    shown = kind.show(one, two, case, most=5)
    assert [(s["expected"], s["teacher"]["top"], s["student"]["top"]) for s in shown] == [
        ("(no answer)", "(no answer)", "Rome"),
        ("10th", "10th century", "10th"),
    ]
