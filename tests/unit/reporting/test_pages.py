"""What pages are made of: excerpts, leaves, and a style sheet that the policy names."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from potstill.reporting.pages import excerpt, flat, render


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("a  b\n c", "a b c"),
        (3, "3"),
        ("abcdefgh", "abcd\N{HORIZONTAL ELLIPSIS}"),
        ("abc efgh", "abc\N{HORIZONTAL ELLIPSIS}"),
    ],
)
def test_excerpt(value, text):
    assert excerpt(value, 5) == text


def test_flat_names_each_leaf_and_leaves_empty_ones_out():
    tree = {
        "a_b": {"c": 1234, "none": None, "empty": {}},
        "d": [True, 0.51234],
        "e": "text",
        "f": False,
    }
    assert list(flat(tree)) == [
        ("a b, c", "1,234"),
        ("d", "yes, 0.512"),
        ("e", "text"),
        ("f", "no"),
    ]


def test_a_value_that_a_template_misses_is_an_error():
    with pytest.raises(UndefinedError):
        render("compare.html.j2", {"title": "x"})
