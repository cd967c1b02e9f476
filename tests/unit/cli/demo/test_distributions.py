"""Softened distributions, against the plain equations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from potstill.cli.demo.distributions import CANDIDATES, Distribution, soften

HEATS = (0.5, 1.0, 4.0)


def shares(logits: list[float], temperature: float) -> list[float]:
    """softmax(z / T), as it is written."""
    powers = [math.exp(z / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def of(logits: list[float], keys: str, **settings: object) -> Distribution:
    return Distribution("the label", list(keys), np.array(logits), **settings)  # type: ignore[arg-type]


def test_a_label_has_the_same_row_in_every_model_whatever_their_order() -> None:
    teacher, student = [2.0, -1.0, 0.5], [0.1, 1.5, -2.0]
    found = soften({"teacher": of(teacher, "abc"), "student": of(student, "cab")}, HEATS)
    assert found["candidates"] == ["a", "c", "b"]  # the teacher's likeliest first
    assert found["title"] == "the label"
    in_order = [student[1], student[0], student[2]]  # the student's logits of a, c and b
    for step, heat in enumerate(HEATS):
        p = shares([2.0, 0.5, -1.0], heat)
        q = shares(in_order, heat)
        told = found["models"]
        assert told["teacher"]["shares"][step] == pytest.approx(p)
        assert told["student"]["shares"][step] == pytest.approx(q)
        expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert told["student"]["divergence"][step] == pytest.approx(expected)
        assert told["teacher"]["divergence"][step] == pytest.approx(0.0, abs=1e-12)
        assert told["student"]["rest"][step] == pytest.approx(0.0, abs=1e-12)


def test_of_many_choices_the_likeliest_are_shown_and_the_others_counted_together() -> None:
    keys = "abcdefghijklmnopqrst"
    teacher = [float(-number) for number in range(20)]
    found = soften({"teacher": of(teacher, keys), "student": of(teacher[::-1], keys)}, HEATS)
    # the teacher's eight, and the student's three; T = 1
    assert "".join(found["candidates"]) == keys[:CANDIDATES] + "rst"
    all_shares = shares(teacher, 1.0)
    assert found["models"]["teacher"]["rest"][1] == pytest.approx(sum(all_shares[8:17]))
    assert found["models"]["student"]["shares"][1][-1] == pytest.approx(all_shares[0])


def test_a_choice_that_a_model_has_not_is_told_and_no_divergence_is() -> None:
    found = soften({"teacher": of([1.0, 0.0], "ab"), "trimmed": of([1.0, 0.0], "bc")}, (2.0,))
    assert found["candidates"] == ["a", "b", "c"]
    p = shares([1.0, 0.0], 2.0)
    assert found["models"]["teacher"]["shares"][0] == [*map(pytest.approx, p), None]
    assert found["models"]["trimmed"]["shares"][0] == [None, *map(pytest.approx, p)]
    assert found["models"]["trimmed"]["divergence"] is None


def test_choices_apart_are_each_a_yes_or_a_no() -> None:
    teacher, student = [3.0, -0.5], [1.0, 0.25]
    models = {"t": of(teacher, "ab", apart=True), "s": of(student, "ab", apart=True)}
    found = soften(models, HEATS)
    assert found["apart"] is True
    for step, heat in enumerate(HEATS):
        p = [1 / (1 + math.exp(-z / heat)) for z in teacher]
        q = [1 / (1 + math.exp(-z / heat)) for z in student]
        assert found["models"]["t"]["shares"][step] == pytest.approx(p)
        assert found["models"]["s"]["rest"][step] == 0
        kl = [
            a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))
            for a, b in zip(p, q, strict=True)
        ]
        assert found["models"]["s"]["divergence"][step] == pytest.approx(sum(kl) / 2)


def test_large_logits_do_not_overflow_and_shown_names_take_the_keys_place() -> None:
    found = soften({"t": of([5000.0, 0.0], "ab", shown={"a": "first"})}, (0.5,))
    assert found["candidates"] == ["first", "b"]
    assert found["models"]["t"]["shares"][0] == [1.0, 0.0]
