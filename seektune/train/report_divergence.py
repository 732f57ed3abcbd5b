"""The report's section about on-policy distillation: divergence from teachers and entropy, by step."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seektune.model.distillation import DIVERGENCE, ENTROPY, OF_TEACHER
from seektune.train.plot_style import Theme, in_both_themes, legend, sheet
from seektune.train.plots import smooth
from seektune.train.report_evaluations import spread
from seektune.train.report_html import picture, section, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "KL(model || teacher) and entropy of the model, in nats per token: in each step, and on one sampled answer to each "
    "held-out row."
)


def divergence_sections(steps: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """HTML of the section; none if the run does not distil teachers into its own answers."""
    measured = [line for line in validation if DIVERGENCE in line]
    if not measured:
        return
    drawn = picture(*in_both_themes(lambda paper: divergence_figure(steps, measured, paper)), CAPTION)
    heads = {DIVERGENCE: "divergence"} | {name: f"from {label}" for name, label in teachers(measured).items()}
    heads |= {ENTROPY: "entropy"}
    rows = [(f"{line['step']:,}", *(_number(line.get(name)) for name in heads)) for line in spread(measured)]
    yield section("Divergence from teachers, held out", drawn, table(rows, ("after step", *heads.values())))


def teachers(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Labels of the teachers by the names of their divergences, if there are several."""
    return {name: name.removeprefix(OF_TEACHER) for line in lines for name in line if name.startswith(OF_TEACHER)}


def divergence_figure(
    steps: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], paper: Theme
) -> "Figure":
    """Divergence above, entropy below, over the steps; held-out values as points."""
    from matplotlib.ticker import MaxNLocator

    figure, both = sheet(paper, [2.6, 2.0])
    for axes, name in zip(both, (DIVERGENCE, ENTROPY), strict=True):
        trained = [line for line in steps if name in line]
        y = smooth(np.array([line[name] for line in trained]))
        axes.plot([line["step"] for line in trained], y, color=paper.line, linewidth=1.6, label=f"training, {name}")
        points = [line["step"] for line in validation]
        held_out = [line[name] for line in validation]
        axes.plot(points, held_out, color=paper.accent, marker="o", markersize=5, linewidth=0, label="held out")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes, paper)
    both[-1].set_xlabel("step")
    return figure


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:z.4f}"
