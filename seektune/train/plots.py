"""The figures of a run: losses and expert loads.

Shapes: L layers, E experts, N moments of the run.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seektune.train.plot_style import Theme, legend, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTH_FROM = 30
"""Minimum number of steps for a smoothed loss curve."""


def loss_figure(steps: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], paper: Theme) -> "Figure":
    """The training loss over steps, with the validation losses as points."""
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = sheet(paper, [3.6])
    x = [line["step"] for line in steps]
    y = np.array([line["loss"] for line in steps])
    marker = "o" if len(steps) == 1 else None
    if len(steps) < SMOOTH_FROM:
        axes.plot(x, y, color=paper.line, linewidth=1.6, marker=marker, label="training")
    else:
        axes.plot(x, y, color=paper.line, alpha=0.3, linewidth=1)
        axes.plot(x, smooth(y), color=paper.line, linewidth=2, label="training, smoothed")
    if any(line["mtp_loss"] for line in steps):
        mtp = smooth(np.array([line["mtp_loss"] for line in steps]))
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
    # a loss of pairs is not one of tokens
    axes.set_ylabel("loss" if "reward_accuracy" in steps[-1] else "loss per taught token (nats)")
    axes.margins(y=0.12)
    legend(axes, paper)
    return figure


def load_figure(moments: Sequence[Mapping[str, Any]], paper: Theme) -> "Figure":
    """Each expert's share of tokens at the end, and of each layer's largest share over the run."""
    from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm

    figure, (heat, course) = sheet(paper, [3.0, 3.0])
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
    return figure


def _course(axes: "Axes", moments: Sequence[Mapping[str, Any]], layers: Sequence[str], paper: Theme) -> None:
    """Largest load of each layer over the run, early layers in one colour and late ones in another."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

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
    legend(axes, paper)


def _shares(load: Sequence[int]) -> NDArray[np.float64]:
    """Loads `[E]` over their mean."""
    load_E = np.array(load, dtype=np.float64)
    return load_E / max(load_E.mean(), 1e-9)


def smooth(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each step and its neighbours, over a twentieth of the run."""
    half = max(1, len(y) // 40)
    return np.array([y[max(0, index - half) : index + half + 1].mean() for index in range(len(y))])
