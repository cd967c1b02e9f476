"""Figures: what is drawn where, as SVG that may stand in a page beside others."""

from __future__ import annotations

import itertools
import re
import sys
import warnings
from xml.etree import ElementTree

import pytest

from potstill.reporting import figures


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in parse(svg).iter("text")]


POINTS = [
    figures.Point("teacher", 20.0, 0.9, 4e6, True),
    figures.Point("student", 10.0, 0.88, 2e6, True),
    figures.Point("slow", 12.0, 0.87, None, False),
    figures.Point("untrained", 10.0, 0.3, 2e6, False),
]


SHARES = {"1": 0.6, "2": 0.3, "rest": 0.1}


def all_figures() -> list[str]:
    return [
        figures.layer_map([0, 2, 5], 6, key="a"),
        figures.loss_curve("Soft targets", [(1, 3.0), (2, 2.0)], [(2, 2.5)], key="b"),
        figures.distribution(SHARES, "2", top=1.0, other=[0.5, 0.4], key="c"),
        figures.pareto(POINTS, "ms", "Accuracy", key="d", reference=("TF-IDF", 0.84)),
        figures.retention({"Accuracy": [("student", 0.98, (0.95, 1.01))]}, "its", key="e"),
        figures.seeds({"plain": [0.8, 0.9], "student": [0.9]}, "Accuracy", key="f"),
    ]


def test_svg_has_no_outside_references_and_inherits_the_pages_ink():
    for svg in all_figures():
        assert "http" not in svg
        assert "<style" not in svg
        assert "style=" not in svg  # which the page's policy would not apply
        assert "font-family" not in svg
        assert "#000000" not in svg
        assert figures.INK not in svg
        assert "currentColor" in svg
        # every reference is to something inside
        ids = set(re.findall(r'\bid="([^"]+)"', svg))
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= ids


def test_ids_of_figures_differ_although_their_drawing_is_the_same():
    pair = [
        figures.loss_curve("x", [(1, 1.0), (2, 0.5)], [(2, 0.6)], key=key) for key in ("qq", "zz")
    ]
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in pair]
    assert len(ids[0]) > 5
    assert not set(ids[0]) & set(ids[1])
    assert pair[0].replace("qq-", "zz-") == pair[1]  # nothing random in it


def test_title_and_description_are_escaped_and_referred_to():
    svg = figures.loss_curve("<b>&", [(1, 3.0), (40, 2.25)], [(40, 2.5)], key="k")
    root = parse(svg)
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == "k-title k-desc"
    title, description = root.find("title"), root.find("desc")
    assert (title.get("id"), title.text) == ("k-title", "<b>& over the steps")
    assert description.text == (
        "Loss: training from 3 at step 1 to 2.25 at step 40; "
        "held-out text from 2.5 at step 40 to 2.5 at step 40."
    )


def test_a_key_from_outside_can_not_leave_its_attribute():
    # keys hold names of losses, which are read from a log
    svg = figures.loss_curve("x", [(1, 1.0)], [], key='loss-"><script>\\1')
    root = parse(svg)
    assert root.get("aria-labelledby") == "loss----script--1-title loss----script--1-desc"
    assert root.find("title").get("id") == "loss----script--1-title"
    assert "<script" not in svg


def test_layer_map_numbers_layers_and_says_the_pairs():
    svg = figures.layer_map([0, 2, 5], 6, key="k")
    assert texts(svg) == ["teacher", "student", *"012345", *"012"]
    assert "0 to 0, 2 to 1, 5 to 2." in parse(svg).findtext("desc")
    fills = re.findall(r'fill="(#3b82c4|none)" stroke="(#3b82c4|#808080)"', svg)
    # teacher's boxes: 0, 2 and 5 are used; then the student's three
    used, unused = ("#3b82c4", "#3b82c4"), ("none", "#808080")
    boxes = [fill for fill in fills if fill in (used, unused)]
    assert boxes == [used, unused, used, unused, unused, used, used, used, used]


def test_layer_map_of_a_deep_teacher_keeps_all_its_layers():
    svg = figures.layer_map(list(range(0, 24, 2)), 24, key="k")
    assert texts(svg) == ["teacher", "student", *map(str, range(24)), *map(str, range(12))]


def test_distribution_has_a_bar_for_each_share():
    svg = figures.distribution(SHARES, "0.5", top=1.0, key="k")
    bars = re.findall(r'd="([^"]+)"[^>]*fill="(#3b82c4|#808080)"/>', svg)
    assert [fill for _, fill in bars] == ["#3b82c4", "#3b82c4", "#808080"]
    heights = []
    for path, _ in bars:
        ys = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)]
        heights.append(max(ys) - min(ys))
    assert [height / sum(heights) for height in heights] == pytest.approx([0.6, 0.3, 0.1], rel=1e-4)
    assert {"1", "2", "rest", "T = 0.5"} <= set(texts(svg))
    assert parse(svg).findtext("desc") == (
        "Probability of candidate 1: 0.600, 2: 0.300, rest: 0.100."
    )
    assert "rest" not in texts(figures.distribution({"1": 0.6, "2": 0.4}, "1", top=1.0, key="k"))


def test_long_curves_are_averaged_in_runs():
    # 600 points in runs of 2: (1 + 2) / 2 and so on
    steps, values = figures._thin([(step, 2.0 * step) for step in range(1, 601)])
    assert len(steps) == 300
    assert (steps[0], values[0]) == (1.5, 3.0)
    assert (steps[-1], values[-1]) == (599.5, 1199.0)
    assert figures._thin([(1, 5.0), (2, 4.0)]) == ([1, 2], [5.0, 4.0])


def test_a_loss_that_is_not_finite_or_missing_draws_without_a_warning():
    curve = [(1, 1.0), (2, float("inf")), (3, float("nan")), (4, 2.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse(figures.loss_curve("x", curve, [], key="k")).tag == "svg"
        empty = figures.loss_curve("x", [], [], key="k")
        assert all_figures()
    assert parse(empty).findtext("desc") == "No values were logged."


def test_text_is_never_read_as_mathematics():
    # an odd number of dollar signs would be a syntax error of mathtext
    svg = figures.distribution({"1": 1.0}, "$x^", top=1.0, key="k")
    assert "T = $x^" in texts(svg)


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install potstill\[report\]"):
        figures.loss_curve("x", [(1, 1.0)], [], key="k")


def test_pareto_names_all_and_says_the_numbers():
    svg = figures.pareto(POINTS, "ms", "Accuracy", key="k", reference=("TF-IDF", 0.84))
    assert {"teacher", "student", "slow", "untrained", "TF-IDF"} <= set(texts(svg))
    assert parse(svg).findtext("desc") == (
        "ms, Accuracy: teacher (on the front) 20, 0.9; student (on the front) 10, 0.88; "
        "slow 12, 0.87; untrained 10, 0.3; TF-IDF scores 0.84."
    )
    # 0.3 is too far below to be on the axis, which begins above it
    ticks = [float(text) for text in texts(svg) if re.fullmatch(r"0\.\d+", text)]
    assert min(ticks) > 0.3


def test_names_beside_the_points_do_not_cover_each_other():
    close = [figures.Point(f"model {n}", 10.0 + n, 0.9 - n / 1e5, 1e6, n == 0) for n in range(8)]
    svg = figures.pareto(close, "ms", "Accuracy", key="k", reference=None)
    heights = sorted(
        float(found)
        for found in re.findall(r"translate\([\d.]+ ([\d.]+)\)[^>]*>model \d", svg)
        or re.findall(r'y="([\d.]+)"[^>]*>model \d', svg)
    )
    assert len(heights) == 8
    assert min(b - a for a, b in itertools.pairwise(heights)) > 7  # points


def test_one_point_alone_and_equal_scores_draw():
    alone = [figures.Point("teacher", 20.0, 0.9, None, True)]
    same = [figures.Point(n, 20.0, 0.9, None, True) for n in ("a", "b")]
    for points in (alone, same):
        assert parse(figures.pareto(points, "ms", "x", key="k", reference=None)).tag == "svg"


def test_retention_says_each_share():
    groups = {
        "Accuracy": [("student", 0.98, (0.95, 1.01)), ("a name that is far too long", 0.9, None)],
        "F1": [("student", 0.5, None)],
    }
    svg = figures.retention(groups, "the teacher's", key="k")
    assert parse(svg).findtext("desc") == (
        "Accuracy: student 98.0%, a name that is far too long 90.0%; F1: student 50.0%."
    )
    assert "a name that is fa\N{HORIZONTAL ELLIPSIS}" in texts(svg)
    assert texts(svg).count("student") == 2
