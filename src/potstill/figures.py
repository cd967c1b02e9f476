"""Figures of the report as inline SVG: text stays text, ink is the page's own colour, ids differ.

Drawn by matplotlib (extra `report`), which is imported only when a figure is asked for.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Mid-luminance colours: at least 3:1 against white and against a dark page.
BLUE, ORANGE, MUTED = "#3b82c4", "#cc6a1c", "#808080"
# Replaced by currentColor, so that lines and text are dark on light pages and light on dark ones.
INK = "#010101"
MAX_POINTS = 300

Curve = Sequence[tuple[float, float]]  # (step, value)


def require_matplotlib() -> None:
    """Raise a ValueError that names the extra if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(
            "the report's figures need matplotlib: run pip install potstill[report]"
        ) from None


def layer_map(layers: Sequence[int], teacher_layers: int, *, key: str) -> str:
    """Which teacher layer (upper row) became which student layer (lower row).

    Args:
        layers: for each student layer the number of its teacher layer, counted from 0.
        key: prefix of all ids of the figure; unique on the page.
    """
    from matplotlib.patches import FancyBboxPatch

    width, height = 0.8, 0.62
    left = (teacher_layers - len(layers)) / 2
    with _figure(max(3.2, min(0.55 * teacher_layers + 1.1, 7.0)), 1.75, layout=None) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(-2.0, teacher_layers - 0.4)
        axes.set_ylim(-0.45, 2.45)

        def box(x: float, y: float, label: int, used: bool) -> None:
            shape = FancyBboxPatch(
                (x - width / 2, y - height / 2),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.12",
                facecolor=BLUE if used else "none",
                edgecolor=BLUE if used else MUTED,
                linewidth=1,
            )
            axes.add_patch(shape)
            colour = "#ffffff" if used else MUTED
            axes.text(x, y, str(label), ha="center", va="center", color=colour, fontsize=9)

        for y, label in ((2.0, "teacher"), (0.0, "student")):
            axes.text(-0.75, y, label, ha="right", va="center", color=INK, fontsize=9)
        for number in range(teacher_layers):
            box(number, 2.0, number, number in layers)
        for number, source in enumerate(layers):
            ends = (source, left + number), (2.0 - height / 2, height / 2)
            axes.plot(*ends, color=BLUE, linewidth=1.2)
            box(left + number, 0.0, number, True)
        pairs = ", ".join(f"{source} to {number}" for number, source in enumerate(layers))
        return _svg(
            figure,
            key,
            f"Layer map: {teacher_layers} teacher layers, {len(layers)} student layers",
            f"Teacher layers copied to student layers, counted from 0: {pairs}.",
        )


def loss_curve(label: str, train: Curve, evaluated: Curve, *, key: str) -> str:
    """One loss over the steps of a training: its logged values as a line, evaluations as points."""
    with _figure(4.3, 2.15) as figure:
        axes = figure.add_subplot()
        steps, losses = _thin(train)
        axes.plot(steps, losses, color=BLUE, linewidth=1.3)
        if evaluated:
            steps, losses = _thin(evaluated)
            axes.plot(steps, losses, "o-", color=ORANGE, markersize=3.2, linewidth=0.9)
        axes.set_xlabel("step", color=INK)
        axes.margins(x=0.02)
        _style(axes)
        return _svg(figure, key, f"{label} over the steps", _told(train, evaluated))


def distribution(
    shares: Sequence[float],
    temperature: str,
    *,
    top: float,
    key: str,
    rest: float | None = None,
    other: Sequence[float] = (),
) -> str:
    """One distribution at one temperature, a bar for each candidate.

    Args:
        shares: probabilities of the candidates, in the order of the page's table.
        top: upper end of the probability axis, the same for all temperatures.
        rest: the probability of all other candidates together, a bar of its own.
        other: the student's probabilities of the same candidates, drawn as marks.
    """
    labels = [*map(str, range(1, len(shares) + 1)), *(["rest"] if rest is not None else [])]
    bars = [*shares, *([rest] if rest is not None else [])]
    with _figure(2.3, 1.9) as figure:
        axes = figure.add_subplot()
        places = list(range(len(bars)))
        axes.bar(places, bars, width=0.72, color=([BLUE] * len(shares) + [MUTED])[: len(bars)])
        (marks,) = axes.plot(places[: len(other)], other, "D", color=ORANGE, markersize=4.2)
        marks.set(markeredgecolor="#ffffff", markeredgewidth=0.6)
        axes.set_ylim(0, top)
        axes.set_xticks(places, labels)
        axes.set_title(f"T = {temperature}", fontsize=9, color=INK)
        _style(axes)
        values = ", ".join(f"{label}: {bar:.3f}" for label, bar in zip(labels, bars, strict=True))
        title = f"Softened distribution at T = {temperature}"
        return _svg(figure, key, title, f"Probability of candidate {values}.")


def _told(train: Curve, evaluated: Curve) -> str:
    parts = [
        f"{name} from {curve[0][1]:.4g} at step {curve[0][0]:g} to {curve[-1][1]:.4g} "
        f"at step {curve[-1][0]:g}"
        for name, curve in (("training", train), ("held-out text", evaluated))
        if curve
    ]
    return f"Loss: {'; '.join(parts)}." if parts else "No values were logged."


def _thin(curve: Curve) -> tuple[list[float], list[float]]:
    """Steps and values, averaged in runs to at most MAX_POINTS; what is not finite is a gap."""
    size = math.ceil(len(curve) / MAX_POINTS) or 1
    runs = [curve[start : start + size] for start in range(0, len(curve), size)]
    steps = [sum(step for step, _ in run) / len(run) for run in runs]
    values = [sum(value for _, value in run) / len(run) for run in runs]
    return steps, [value if math.isfinite(value) else math.nan for value in values]


@contextmanager
def _figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Iterator[Figure]:
    """A figure of this many inches, with settings that hold until it is saved."""
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "text.parse_math": False,
            "font.size": 8.5,
            "font.family": "DejaVu Sans",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.formatter.useoffset": False,
        }
    ):
        yield Figure(figsize=(width, height), layout=layout)


def _style(axes: Axes) -> None:
    axes.grid(axis="y", color=MUTED, alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, color=MUTED, length=3, width=0.7)
    for spine in axes.spines.values():
        spine.set(color=MUTED, linewidth=0.7)


def _svg(figure: Figure, key: str, title: str, description: str) -> str:
    """The figure as one <svg> element for an HTML page."""
    import matplotlib

    buffer = io.StringIO()
    # The salt makes generated ids the same in every run; the prefix below keeps figures apart.
    with matplotlib.rc_context({"svg.hashsalt": "potstill"}):
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    found = re.search(r"<svg\b[^>]*?viewBox=\"([^\"]+)\"[^>]*>(.*)</svg>", text, re.DOTALL)
    assert found is not None, "matplotlib wrote no SVG"
    box, body = found.groups()
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style\b.*?</style>", "", body, flags=re.DOTALL)  # would apply to the page
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=").replace(INK, "currentColor")
    body = re.sub(r'\bid="', f'id="{key}-', body)
    body = body.replace('href="#', f'href="#{key}-').replace("url(#", f"url(#{key}-")
    body = re.sub(r"font-family: [^;\"]+(; )?", "", body)  # the page's own
    body = re.sub(r"\n\s*", "\n", body)
    points = float(box.split()[2])
    return (
        f'<svg role="img" aria-labelledby="{key}-title {key}-desc" viewBox="{box}" '
        f'style="width: 100%; max-width: {points * 4 / 3:.0f}px" fill="currentColor" '
        f'stroke-linejoin="round" stroke-linecap="butt">'
        f'<title id="{key}-title">{html.escape(title)}</title>'
        f'<desc id="{key}-desc">{html.escape(description)}</desc>{body}</svg>'
    )
