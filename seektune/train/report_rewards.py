"""The report's section about rewards of sampled answers, over the run and on held-out rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seektune.train.held_out import REWARD
from seektune.train.plot_style import Theme, in_both_themes, legend, sheet
from seektune.train.plots import smooth
from seektune.train.report_evaluations import spread
from seektune.train.report_html import picture, section, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOW = "reward_low"
HIGH = "reward_high"
CAPTION = (
    "Mean reward of the answers of each step, and of one sampled answer to each held-out row with its 95 % interval."
)
MISMATCH = "largest difference of a token's probability between decoding and the training forward"


def reward_sections(steps: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """HTML of the section; none if the run samples no answers."""
    if REWARD not in validation[-1]:
        return
    drawn = picture(*in_both_themes(lambda paper: reward_figure(steps, validation, paper)), CAPTION)
    rows = [
        (f"{line['step']:,}", f"{line[REWARD]:.4g}", f"{line[LOW]:.4g} to {line[HIGH]:.4g}")
        for line in spread(validation)
    ]
    largest = max(line["mismatch_max"] for line in steps)
    facts = table([(MISMATCH, f"{largest:.2g}")])
    yield section("Rewards", drawn, table(rows, ("after step", "held-out reward", "95 % interval")), facts)


def reward_figure(
    steps: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], paper: Theme
) -> "Figure":
    """Rewards over the steps; held-out ones as points with intervals."""
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = sheet(paper, [2.6])
    rewards = smooth(np.array([line[REWARD] for line in steps]))
    axes.plot([line["step"] for line in steps], rewards, color=paper.line, linewidth=1.6, label="training")
    points = [line["step"] for line in validation]
    means = np.array([line[REWARD] for line in validation])
    below = means - np.array([line[LOW] for line in validation])
    above = np.array([line[HIGH] for line in validation]) - means
    axes.errorbar(points, means, [below, above], color=paper.accent, fmt="o", markersize=5, label="held out")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    legend(axes, paper)
    return figure
