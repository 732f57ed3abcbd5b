"""The report's section about preferences: rewards and accuracies over the run, and on held-out pairs by step."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seektune.train.plot_style import Theme, in_both_themes, legend, sheet
from seektune.train.plots import smooth
from seektune.train.report_evaluations import spread
from seektune.train.report_html import picture, section, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACCURACY = "reward_accuracy"
CAPTION = "Rewards of chosen and rejected answers, and the share of pairs in which the chosen one has the larger."
COLUMNS = {
    ACCURACY: "accuracy",
    "reward_margin": "margin",
    "chosen_reward": "chosen reward",
    "rejected_reward": "rejected reward",
    "kl": "KL",
    "chosen_tokens": "chosen tokens",
    "rejected_tokens": "rejected tokens",
}
"""Parts of a validation that the table shows, and their heads."""


def preference_sections(steps: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """HTML of the section; none if the objective compares no answers."""
    if ACCURACY not in validation[-1]:
        return
    drawn = picture(*in_both_themes(lambda paper: reward_figure(steps, validation, paper)), CAPTION)
    names = [name for name in COLUMNS if name in validation[-1]]
    lines = spread(validation)
    rows = [(f"{line['step']:,}", *(f"{line[name]:.4g}" for name in names)) for line in lines]
    parts = [table(rows, ("after step", *(COLUMNS[name] for name in names)))]
    if datasets := validation[-1].get("parts_of_datasets"):
        heads = ("accuracy after step", *(f"{line['step']:,}" for line in lines))
        of_datasets = [
            (name, *(f"{line['parts_of_datasets'][name][ACCURACY]:.4g}" for line in lines)) for name in datasets
        ]
        parts.append(table(of_datasets, heads))
    yield section("Preferences, held out", drawn, *parts)


def reward_figure(
    steps: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], paper: Theme
) -> "Figure":
    """Rewards above, accuracies below, over the steps; held-out values as points."""
    from matplotlib.ticker import MaxNLocator

    figure, (rewards, accuracies) = sheet(paper, [2.6, 2.0])
    x = [line["step"] for line in steps]
    points = [line["step"] for line in validation]
    for axes, name, colour in (
        (rewards, "chosen_reward", paper.line),
        (rewards, "rejected_reward", paper.accent),
        (accuracies, ACCURACY, paper.line),
    ):
        y = smooth(np.array([line[name] for line in steps]))
        axes.plot(x, y, color=colour, linewidth=1.6, label=f"training, {COLUMNS[name]}")
        held_out = [line[name] for line in validation]
        axes.plot(points, held_out, color=colour, marker="o", markersize=5, linewidth=0, label="held out")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes, paper)
    accuracies.set_ylim(-0.03, 1.03)
    accuracies.set_xlabel("step")
    return figure
