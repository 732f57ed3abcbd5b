"""The figure of an evaluation task: scores before and after training, with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seektune.train.plot_style import Theme, legend, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Score:
    """A result with its 95 % interval; shares are of 1."""

    value: float
    low: float
    high: float
    text: str
    """Label of value and interval."""

    @property
    def short(self) -> str:
        """Label of the value."""
        return self.text.split(" ")[0]


@dataclass(frozen=True)
class Reference:
    """A value to compare scores with, such as that of guessing."""

    label: str
    value: float


@dataclass(frozen=True)
class BeforeAfter:
    """A score before and after training; None if it is missing."""

    name: str
    before: Score | None
    after: Score | None
    axis: str
    """Label of the axis; scores with the same one share an axis."""
    percent: bool = False
    """Whether the scores are shares of 1."""
    reference: Reference | None = None


def score_figure(comparisons: Sequence[BeforeAfter], paper: Theme) -> "Figure":
    """Scores before and after, with their intervals; one plot per axis."""
    groups = [
        [each for each in comparisons if each.axis == axis] for axis in dict.fromkeys(c.axis for c in comparisons)
    ]
    figure, parts = sheet(paper, [1.1 + 0.75 * len(group) for group in groups])
    for axes, group in zip(parts, groups, strict=True):
        # what the colours mean is said once
        names = ("before", "after") if axes is parts[0] else (None, None)
        _intervals(axes, group, names, paper)
        if axes is parts[0] or group[0].reference is not None:
            legend(axes, paper)
    return figure


def _intervals(axes: "Axes", group: Sequence[BeforeAfter], names: tuple[str | None, str | None], paper: Theme) -> None:
    """Scores of one axis, a row for each; `names` of before and after are for the legend."""
    for label, shift, colour, scores in (
        (names[0], -0.13, paper.line, [each.before for each in group]),
        (names[1], 0.13, paper.accent, [each.after for each in group]),
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
            behind = {"facecolor": paper.back, "edgecolor": "none", "pad": 1}
            axes.annotate(
                score.short, place, (6, -3), textcoords="offset points", color=colour, fontsize=9, bbox=behind
            )
    if (reference := group[0].reference) is not None:
        axes.axvline(reference.value, color=paper.ink, alpha=0.5, linewidth=1, linestyle=":", label=reference.label)
    axes.set_yticks(range(len(group)), [each.name for each in group])
    axes.set_ylim(len(group) - 0.5, -0.5)
    left, right = axes.get_xlim()
    # room for the number of the last interval
    axes.set_xlim(left, right + 0.15 * (right - left))
    percent = group[0].percent
    axes.xaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 1):g}%" if percent else f"{value:,g}")
    axes.set_xlabel(f"{group[0].axis}, 95 % interval")
