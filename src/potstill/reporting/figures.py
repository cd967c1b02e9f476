"""Draw the figures of the report as inline SVG: text stays text, ink has the color of the page.

Drawn by matplotlib (extra `report`), which is imported only when a figure is asked for.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

# Mid-luminance colors: at least 3:1 against white and against a dark page.
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
            "The report's figures need matplotlib, which is not installed. "
            "Run `pip install potstill[report]`."
        ) from None


def layer_map(layers: Sequence[int], teacher_layers: int, *, key: str) -> Markup:
    """Draw which teacher layer (upper row) became which student layer (lower row).

    Args:
        layers: For each student layer the number of its teacher layer, counted from 0.
        key: Prefix of all ids of the figure; unique on the page.
    """
    from matplotlib.patches import FancyBboxPatch

    width, height = 0.8, 0.62
    left = (teacher_layers - len(layers)) / 2
    inches = max(3.2, min(0.55 * teacher_layers + 1.1, 7.0))
    with _axes(inches, 1.75, (0, 0, 1, 1)) as axes:
        axes.set_axis_off()
        axes.set(xlim=(-2.0, teacher_layers - 0.4), ylim=(-0.45, 2.45))

        def box(x: float, y: float, label: int, used: bool) -> None:
            corner, color = (x - width / 2, y - height / 2), BLUE if used else MUTED
            style = "round,pad=0,rounding_size=0.12"
            shape = FancyBboxPatch(corner, width, height, boxstyle=style, linewidth=1)
            shape.set(facecolor=BLUE if used else "none", edgecolor=color)
            axes.add_patch(shape)
            ink = "#ffffff" if used else MUTED
            axes.text(x, y, str(label), ha="center", va="center", color=ink, fontsize=9)

        for y, label in ((2.0, "teacher"), (0.0, "student")):
            axes.text(-0.75, y, label, ha="right", va="center", color=INK, fontsize=9)
        for number in range(teacher_layers):
            box(number, 2.0, number, number in layers)
        for number, source in enumerate(layers):
            ends = (source, left + number), (2.0 - height / 2, height / 2)
            axes.plot(*ends, color=BLUE, linewidth=1.2)
            box(left + number, 0.0, number, True)
        pairs = ", ".join(f"{source} to {number}" for number, source in enumerate(layers))
        title = f"Layer map: {teacher_layers} teacher layers, {len(layers)} student layers"
        told = f"Teacher layers copied to student layers, counted from 0: {pairs}."
        return _svg(axes, key, title, told)


def loss_curve(label: str, train: Curve, evaluated: Curve, *, key: str) -> Markup:
    """Draw a loss over the steps of a training: logged values as a line, evaluations as points."""
    with _axes(4.3, 2.15) as axes:
        steps, losses = _thin(train)
        axes.plot(steps, losses, color=BLUE, linewidth=1.3)
        if evaluated:
            steps, losses = _thin(evaluated)
            axes.plot(steps, losses, "o-", color=ORANGE, markersize=3.2, linewidth=0.9)
        axes.set_xlabel("step", color=INK)
        axes.margins(x=0.02)
        _style(axes)
        return _svg(axes, key, f"{label} over the steps", _told(train, evaluated))


def distribution(
    shares: Mapping[str, float],
    temperature: str,
    *,
    top: float,
    key: str,
    other: Sequence[float] = (),
) -> Markup:
    """Draw one distribution at one temperature, a bar for each candidate.

    Args:
        shares: Number of a candidate in the page's table -> its probability; `rest`: that of all
            other candidates together, a bar of another color.
        top: Upper end of the probability axis, the same for all temperatures.
        other: The student's probabilities of the same candidates, drawn as marks.
    """
    with _axes(2.3, 1.9) as axes:
        places = list(range(len(shares)))
        colors = [MUTED if label == "rest" else BLUE for label in shares]
        axes.bar(places, list(shares.values()), width=0.72, color=colors)
        (marks,) = axes.plot(places[: len(other)], other, "D", color=ORANGE, markersize=4.2)
        marks.set(markeredgecolor="#ffffff", markeredgewidth=0.6)
        axes.set_ylim(0, top)
        axes.set_xticks(places, list(shares))
        axes.set_title(f"T = {temperature}", fontsize=9, color=INK)
        _style(axes)
        values = ", ".join(f"{label}: {share:.3f}" for label, share in shares.items())
        title = f"Softened distribution at T = {temperature}"
        return _svg(axes, key, title, f"Probability of candidate {values}.")


@dataclass(frozen=True)
class Point:
    """Hold an artifact of a plot of cost and score."""

    name: str
    cost: float
    score: float
    weight: float | None  # decides the area of its mark
    front: bool  # nothing is better in both


def pareto(
    points: Sequence[Point], cost: str, score: str, *, key: str, reference: tuple[str, float] | None
) -> Markup:
    """Draw score over cost, one mark per model, its area the size of the weights.

    Args:
        cost, score: names of the axes, with their units.
        reference: what trivial means reach, a line across.
    """
    front = sorted((point.cost, point.score) for point in points if point.front)
    least, top = front[0][1], front[-1][1]
    heights = [point.score for point in points] + ([reference[1]] if reference else [])
    # What is far below the front would flatten it: such marks lie on the lower edge.
    low = min(y for y in heights if top == least or y >= least - 1.5 * (top - least))
    margin = 0.12 * (top - low or abs(top) or 1.0)
    edge = low - margin
    heaviest = max((point.weight or 0 for point in points), default=0) or 1
    with _axes(4.3, 2.7, (0.145, 0.17, 0.54, 0.79)) as axes:
        axes.set(xlim=(0, 1.08 * max(point.cost for point in points)), ylim=(edge, top + margin))
        axes.plot(*zip(*front, strict=True), color=ORANGE, linewidth=1.1, drawstyle="steps-post")
        for point in points:
            color = ORANGE if point.front else BLUE
            below = point.score < edge
            axes.scatter(
                point.cost,
                max(point.score, edge),
                s=26 + 150 * (point.weight or 0) / heaviest,
                marker="v" if below else "D" if point.front else "o",
                facecolors=color if point.front else "none",
                edgecolors=color,
                alpha=0.85,
                linewidths=1.3,
                clip_on=False,
                zorder=3,
            )
        named = [(point.name, point.cost, max(point.score, edge)) for point in points]
        if reference is not None:
            height = max(reference[1], edge)
            if height > edge:
                axes.axhline(height, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
            named.append((reference[0], axes.get_xlim()[1], height))
        _name_at_the_side(axes, named)
        axes.set_xlabel(cost, color=INK)  # the score is the page's heading
        _style(axes)
        told = "; ".join(
            f"{point.name}{' (on the front)' if point.front else ''} {point.cost:.4g}, "
            f"{point.score:.4g}"
            for point in points
        )
        if reference is not None:
            told += f"; {reference[0]} scores {reference[1]:.4g}"
        return _svg(axes, key, f"{score} over {cost}", f"{cost}, {score}: {told}.")


def _name_at_the_side(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write the names of points right of the axes, none over another, with a line to each point."""
    (_, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    gap = (top - bottom) / 13
    order = sorted(points, key=lambda point: (point[2], -point[1]))
    places: list[float] = []
    for _, _, y in order:
        places.append(max(y, places[-1] + gap) if places else max(y, bottom))
    most = top - gap / 2
    for number in range(len(places) - 1, -1, -1):  # what was pushed out at the top moves down
        places[number] = min(places[number], most)
        most = places[number] - gap
    width = right - axes.get_xlim()[0]
    for (name, x, y), place in zip(order, places, strict=True):
        line = [x, right + 0.01 * width, right + 0.05 * width], [y, y, place]
        axes.plot(*line, color=MUTED, linewidth=0.6, alpha=0.7, clip_on=False, zorder=1)
        axes.text(right + 0.065 * width, place, _short(name), va="center", color=INK, fontsize=8)


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


Bar = tuple[str, float, Sequence[float] | None]  # name, value, its interval


def retention(groups: Mapping[str, Sequence[Bar]], whose: str, *, key: str) -> Markup:
    """Draw the share of each score that each model retains, with its 95% confidence interval.

    Args:
        groups: name of a score or task -> models.
        whose: the baseline, as in "the teacher's".
    """
    bars = [bar for group in groups.values() for bar in group]
    ends = [value for _, value, _ in bars] + [end for _, _, span in bars for end in span or ()]
    low, high = min(*ends, 1.0), max(*ends, 1.0)
    rows = len(bars) + 1.25 * len(groups)
    height = 0.17 * rows + 0.62
    with _axes(4.3, height, (0.33, 0.48 / height, 0.63, 1 - 0.54 / height)) as axes:
        margin = 0.04 * (high - low or 1.0)
        axes.set_xlim(100 * (low - margin), 100 * (high + margin))
        axes.set_ylim(rows - 0.3, -0.6)
        axes.axvline(100, color=MUTED, linewidth=1)
        place = 0.0
        for group, members in groups.items():
            left = axes.get_yaxis_transform()
            axes.text(
                -0.51, place, group, transform=left, va="center", color=INK, fontweight="bold"
            )
            place += 1.0
            for name, value, span in members:
                if span is not None:
                    axes.plot([100 * span[0], 100 * span[1]], [place] * 2, color=BLUE, linewidth=1)
                axes.plot([100 * value], [place], "o", color=BLUE, markersize=4.6)
                axes.text(
                    -0.03, place, _short(name), transform=left, ha="right", va="center", color=INK
                )
                place += 1.0
            place += 0.25
        axes.set_yticks([])
        axes.set_xlabel(f"% of {whose} score", color=INK)
        _style(axes, "x")
        told = "; ".join(
            f"{group}: {', '.join(f'{name} {value:.1%}' for name, value, _ in members)}"
            for group, members in groups.items()
        )
        return _svg(axes, key, f"Kept of {whose} score", f"{told}.")


def seeds(scores: Mapping[str, Sequence[float]], score: str, *, key: str) -> Markup:
    """Draw the score of each training of each model as a dot, and their mean as a line.

    Args:
        scores: model -> one value a training.
    """
    height = 0.24 * len(scores) + 0.6
    with _axes(4.3, height, (0.33, 0.48 / height, 0.63, 1 - 0.54 / height)) as axes:
        for place, values in enumerate(scores.values()):
            mean = sum(values) / len(values)
            if len(values) > 1:
                axes.plot([mean] * 2, [place - 0.36, place + 0.36], color=ORANGE, linewidth=1.8)
            axes.plot(values, [place] * len(values), "o", color=BLUE, markersize=4.6, alpha=0.75)
        axes.set_ylim(len(scores) - 0.4, -0.6)
        axes.set_yticks(range(len(scores)), [_short(name) for name in scores])
        axes.margins(x=0.08)
        axes.set_xlabel(score, color=INK)
        _style(axes, "x")
        axes.tick_params(axis="y", length=0)
        told = "; ".join(
            f"{name} {', '.join(f'{value:.4g}' for value in values)}, "
            f"mean {sum(values) / len(values):.4g}"
            for name, values in scores.items()
        )
        return _svg(axes, key, f"{score} of each training", f"{told}.")


def _told(train: Curve, evaluated: Curve) -> str:
    parts = [
        f"{name} from {curve[0][1]:.4g} at step {curve[0][0]:g} to {curve[-1][1]:.4g} "
        f"at step {curve[-1][0]:g}"
        for name, curve in (("training", train), ("held-out text", evaluated))
        if curve
    ]
    return f"Loss: {'; '.join(parts)}." if parts else "No values were logged."


def _thin(curve: Curve) -> tuple[list[float], list[float]]:
    """Average steps and values in runs, to at most MAX_POINTS; what is not finite is a gap."""
    size = math.ceil(len(curve) / MAX_POINTS) or 1
    runs = [curve[start : start + size] for start in range(0, len(curve), size)]
    steps = [sum(step for step, _ in run) / len(run) for run in runs]
    values = [sum(value for _, value in run) / len(run) for run in runs]
    return steps, [value if math.isfinite(value) else math.nan for value in values]


@contextmanager
def _axes(
    width: float, height: float, place: tuple[float, float, float, float] | None = None
) -> Iterator[Axes]:
    """Make the axes of a figure of this many inches; its settings hold until it is saved."""
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "text.parse_math": False,
            "font.size": 9,
            "font.family": "DejaVu Sans",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.formatter.useoffset": False,
        }
    ):
        figure = Figure(figsize=(width, height), layout=None if place else "constrained")
        yield figure.add_axes(place) if place else figure.add_subplot()


def _style(axes: Axes, grid: Literal["x", "y"] = "y") -> None:
    axes.grid(axis=grid, color=MUTED, alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, color=MUTED, length=3, width=0.7)
    for spine in axes.spines.values():
        spine.set(color=MUTED, linewidth=0.7)
    axes.spines["left"].set_visible(grid == "y")  # else rows have names, not a scale


def _svg(axes: Axes, key: str, title: str, description: str) -> Markup:
    """Return the axes' figure as one <svg> element for an HTML page."""
    import matplotlib
    from matplotlib.figure import Figure

    key = re.sub(r"[^\w-]", "-", key)  # it may hold what a log or a file is called
    buffer = io.StringIO()
    # The salt makes generated ids the same in every run; the prefix below keeps figures apart.
    with matplotlib.rc_context({"svg.hashsalt": "potstill"}):
        figure = axes.figure
        assert isinstance(figure, Figure)
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
    body = re.sub(r' style="([^"]*)"', _attributes, body)
    body = re.sub(r"\n\s*", "\n", body)
    points = float(box.split()[2])
    return Markup(
        f'<svg role="img" aria-labelledby="{key}-title {key}-desc" viewBox="{box}" '
        f'width="{points * 4 / 3:.0f}" fill="currentColor" '
        f'stroke-linejoin="round" stroke-linecap="butt">'
        f'<title id="{key}-title">{html.escape(title)}</title>'
        f'<desc id="{key}-desc">{html.escape(description)}</desc>{body}</svg>'
    )


def _attributes(style: re.Match[str]) -> str:
    """Turn an inline style into attributes, which a page that allows no inline style draws too."""
    parts = [part.partition(":") for part in style[1].split(";") if part.strip()]
    return "".join(f' {name.strip()}="{value.strip()}"' for name, _, value in parts)
