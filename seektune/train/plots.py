"""The figures of a run, each drawn for light and for dark paper: losses, expert loads, evaluation scores.

Shapes: L layers, E experts, N moments of the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

SMOOTH_FROM = 30
"""Steps from which the loss curve is drawn smoothed over the single steps."""
WIDTH = 6.2
"""Inches; narrow enough for its text to be read on a phone."""


@dataclass(frozen=True)
class Theme:
    """Colours of a figure."""

    back: str
    ink: str
    faint: str
    line: str
    accent: str
    low: str
    high: str


LIGHT = Theme("#ffffff", "#1f2733", "#d9dee6", "#2f6fde", "#d9622b", "#2f6fde", "#d9622b")
DARK = Theme("#161b22", "#dfe5ee", "#39424f", "#6ea8ff", "#ff9d66", "#6ea8ff", "#ff9d66")


@dataclass(frozen=True)
class Score:
    """A result with its 95 % interval; shares are of 1."""

    value: float
    low: float
    high: float
    text: str
    """All of it, with what follows the value in brackets or after a space."""

    @property
    def short(self) -> str:
        """The value alone."""
        return self.text.split(" ")[0]


@dataclass(frozen=True)
class Reference:
    """A value to compare scores with, such as that of guessing."""

    label: str
    value: float


@dataclass(frozen=True)
class BeforeAfter:
    """A score before and after training; None where it was not taken."""

    name: str
    before: Score | None
    after: Score | None
    axis: str
    """What is measured; scores of one axis are drawn on it together."""
    percent: bool = False
    """Whether the axis has shares of 1."""
    reference: Reference | None = None


def loss_figure(steps: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], paper: Theme) -> bytes:
    """PNG of the training loss over steps, with the validation losses as points."""
    figure, (axes,) = _sheet(paper, [3.6])
    x = [line["step"] for line in steps]
    y = np.array([line["loss"] for line in steps])
    marker = "o" if len(steps) == 1 else None
    if len(steps) < SMOOTH_FROM:
        axes.plot(x, y, color=paper.line, linewidth=1.6, marker=marker, label="training")
    else:
        axes.plot(x, y, color=paper.line, alpha=0.3, linewidth=1)
        axes.plot(x, _smooth(y), color=paper.line, linewidth=2, label="training, smoothed")
    if any(line["mtp_loss"] for line in steps):
        mtp = _smooth(np.array([line["mtp_loss"] for line in steps]))
        axes.plot(x, mtp, color=paper.ink, alpha=0.55, linewidth=1.2, linestyle=":", label="training, MTP block")
    points = [line["step"] for line in validation], [line["loss"] for line in validation]
    axes.plot(*points, color=paper.accent, marker="o", markersize=5, linewidth=1.4, linestyle="--", label="validation")
    for line in (*validation[:1], *validation[1:][-1:]):
        offset, align = ((8, 6), "left") if line["step"] == 0 else ((-4, 9), "right")
        where = (line["step"], line["loss"])
        text = f"{line['loss']:.3f}"
        axes.annotate(text, where, offset, textcoords="offset points", color=paper.accent, ha=align)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("loss per taught token (nats)")
    axes.margins(y=0.12)
    _legend(axes, paper)
    return _png(figure)


def load_figure(moments: Sequence[Mapping[str, Any]], paper: Theme) -> bytes:
    """PNG of each expert's share of tokens at the end, and of each layer's largest share over the run."""
    figure, (heat, course) = _sheet(paper, [3.0, 3.0])
    layers = list(moments[-1]["loads"])
    shares_LE = np.array([_shares(moments[-1]["loads"][layer]) for layer in layers])
    colours = LinearSegmentedColormap.from_list("loads", [paper.low, paper.back, paper.high])
    top = max(2.0, float(np.quantile(shares_LE, 0.99)))
    image = heat.imshow(shares_LE, aspect="auto", cmap=colours, norm=TwoSlopeNorm(1, 0, top), interpolation="nearest")
    heat.set_title("last steps: load of each expert, 1 = even", color=paper.ink, fontsize=10)
    heat.set_xlabel("expert")
    heat.set_ylabel("layer")
    shown = range(0, len(layers), max(1, len(layers) // 12))
    heat.set_yticks(list(shown), [layers[index] for index in shown])
    heat.grid(False)
    bar = figure.colorbar(image, ax=heat, fraction=0.05, pad=0.03)
    bar.ax.tick_params(colors=paper.ink)
    bar.outline.set_edgecolor(paper.faint)
    _course(course, moments, layers, paper)
    return _png(figure)


def score_figure(comparisons: Sequence[BeforeAfter], paper: Theme) -> bytes:
    """PNG of scores before and after, with their intervals; a part for each axis."""
    groups = [
        [each for each in comparisons if each.axis == axis] for axis in dict.fromkeys(c.axis for c in comparisons)
    ]
    figure, parts = _sheet(paper, [1.1 + 0.75 * len(group) for group in groups])
    for axes, group in zip(parts, groups, strict=True):
        _intervals(axes, group, paper)
        if axes is parts[0] or group[0].reference is not None:
            _legend(axes, paper)
    return _png(figure)


def _intervals(axes: Axes, group: Sequence[BeforeAfter], paper: Theme) -> None:
    """Scores of one axis, a row for each."""
    for label, shift, colour, scores in (
        ("before", -0.13, paper.line, [each.before for each in group]),
        ("after", 0.13, paper.accent, [each.after for each in group]),
    ):
        taken = [(row + shift, score) for row, score in enumerate(scores) if score is not None]
        if taken:
            # an interval that ends in the value itself may miss it by a rounding
            spread = [[max(0.0, s.value - s.low) for _, s in taken], [max(0.0, s.high - s.value) for _, s in taken]]
            x = [score.value for _, score in taken]
            y = [row for row, _ in taken]
            axes.errorbar(x, y, xerr=spread, fmt="o", color=colour, capsize=4, label=label)
        for row, score in taken:
            place = (score.high, row)
            axes.annotate(score.short, place, (6, -3), textcoords="offset points", color=colour, fontsize=9)
    if (reference := group[0].reference) is not None:
        axes.axvline(reference.value, color=paper.ink, alpha=0.5, linewidth=1, linestyle=":", label=reference.label)
    axes.set_yticks(range(len(group)), [each.name for each in group])
    axes.set_ylim(len(group) - 0.5, -0.5)
    axes.margins(x=0.15)
    percent = group[0].percent
    axes.xaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 1):g}%" if percent else f"{value:,g}")
    axes.set_xlabel(f"{group[0].axis}, 95 % interval")


def _course(axes: Axes, moments: Sequence[Mapping[str, Any]], layers: Sequence[str], paper: Theme) -> None:
    """Largest load of each layer over the run, early layers in one colour and late ones in another."""
    colours = LinearSegmentedColormap.from_list("layers", [paper.line, paper.accent])
    steps = [moment["step"] for moment in moments]
    for index, layer in enumerate(layers):
        largest = [_shares(moment["loads"][layer]).max() for moment in moments]
        marker = "o" if len(steps) == 1 else None
        named = f"layer {layer}" if index in (0, len(layers) - 1) else None
        colour = colours(index / max(1, len(layers) - 1))
        axes.plot(steps, largest, color=colour, linewidth=1.2, marker=marker, markersize=4, label=named)
    axes.axhline(1, color=paper.ink, alpha=0.5, linewidth=1, linestyle=":")
    # the legend lies between title and axes
    axes.set_title("over the run: busiest expert of each layer", color=paper.ink, fontsize=10, pad=20)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    _legend(axes, paper)


def _shares(load: Sequence[int]) -> NDArray[np.float64]:
    """Loads `[E]` over their mean."""
    load_E = np.array(load, dtype=np.float64)
    return load_E / max(load_E.mean(), 1e-9)


def _smooth(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each step and its neighbours, over a twentieth of the run."""
    half = max(1, len(y) // 40)
    return np.array([y[max(0, index - half) : index + half + 1].mean() for index in range(len(y))])


def _sheet(paper: Theme, heights: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """An empty figure of parts below one another, by their heights in inches."""
    figure = Figure(figsize=(WIDTH, sum(heights)), dpi=180, facecolor=paper.back, layout="constrained")
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    every = [figure.add_subplot(grid[part], facecolor=paper.back) for part in range(len(heights))]
    for axes in every:
        axes.grid(True, color=paper.faint, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(colors=paper.ink, labelsize=9, length=0)
        axes.xaxis.label.set_color(paper.ink)
        axes.yaxis.label.set_color(paper.ink)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure, every


def _legend(axes: Axes, paper: Theme) -> None:
    # above the axes, where it covers nothing
    axes.legend(
        frameon=False, labelcolor=paper.ink, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderpad=0
    )


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
