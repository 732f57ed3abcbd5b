"""Style of the report's figures in a light and a dark theme: colours, axes and legend.

matplotlib is imported where figures are drawn: one process of a job does so, at the end, and the import takes 0.6 s.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def sheet(paper: Theme, heights: Sequence[float]) -> "tuple[Figure, list[Axes]]":
    """An empty figure with axes below one another, by their heights in inches."""
    from matplotlib.figure import Figure

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


def legend(axes: "Axes", paper: Theme) -> None:
    """Put the legend above the axes, so that it covers nothing."""
    axes.legend(
        frameon=False, labelcolor=paper.ink, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderpad=0
    )


def in_both_themes(draw: "Callable[[Theme], Figure]") -> tuple[bytes, bytes]:
    """PNG of a figure in the light and in the dark theme, in one layout: computing it takes half of the time."""
    light = draw(LIGHT)
    dark = draw(DARK)
    image = png(light)
    dark.set_layout_engine("none")
    for axes, placed in zip(dark.axes, light.axes, strict=True):
        axes.set_position(placed.get_position())
    return image, png(dark)


def png(figure: "Figure") -> bytes:
    """The figure as the bytes of a file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = BytesIO()
    # `savefig` would draw a figure twice, first for its layout
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
