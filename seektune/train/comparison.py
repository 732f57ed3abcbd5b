"""A page that compares runs: curves over one another, what differs in their recipes, and their evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seektune.io.run_files import METRICS, VALIDATION
from seektune.train.evaluation_log import read_if_there
from seektune.train.plot_style import Theme, in_both_themes, legend, sheet
from seektune.train.plots import SMOOTH_FROM, smooth
from seektune.train.report_html import page, picture, section, table
from seektune.train.report_text import ReportText, read_texts
from seektune.train.score_plot import BeforeAfter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#2f6fde", "#d9622b", "#2a9d5c", "#a04fd0", "#c2a200", "#d13d6b", "#3aa6b9", "#7a6a58")
"""Of the first runs; further ones begin again."""
ITS_OWN = ("run_dir", "resume")
"""Keys in which runs always differ."""


@dataclass(frozen=True)
class ComparedRun:
    """What a run folder holds."""

    name: str
    recipe: Mapping[str, Any]
    """Values by dotted key."""
    steps: Sequence[Mapping[str, Any]]
    validation: Sequence[Mapping[str, Any]]
    story: ReportText

    @classmethod
    def read(cls, folder: Path, name: str, recipe: Mapping[str, Any]) -> "ComparedRun":
        """Read a run folder.

        Raises:
            ValueError: the run has no step or no validation loss yet, or a file is damaged.
            OSError: a file cannot be read.
        """
        steps = [line for line in read_if_there(folder / METRICS) if "loss" in line]
        validation = read_if_there(folder / VALIDATION)
        if not steps or not validation:
            raise ValueError(f"{folder} holds no finished step of a run")
        return cls(name, recipe, steps, validation, read_texts(folder))


def comparison_page(runs: Sequence[ComparedRun]) -> str:
    """The page, one self-contained file."""
    names = [run.name for run in runs]
    caption = "Training loss, and as points that on held-out rows. Losses on different data cannot be compared."
    parts = [
        section("Loss", picture(*in_both_themes(lambda paper: _curves(runs, paper)), caption)),
        section("Runs", table(map(_summary, runs), ("", "steps", "tokens", "validation loss", "tokens per second"))),
        section("What differs in their recipes", table(recipe_differences(runs), ("key", *names))),
        *_evaluations(runs),
    ]
    return page(" · ".join(names), f"{len(runs)} runs compared", parts)


def recipe_differences(runs: Sequence[ComparedRun]) -> list[tuple[str, ...]]:
    """Each key that has not the same value in all runs, and its values."""
    keys = dict.fromkeys(key for run in runs for key in run.recipe if key not in ITS_OWN)
    rows = [(key, *(_shown(run.recipe, key) for run in runs)) for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _shown(recipe: Mapping[str, Any], key: str) -> str:
    if key not in recipe:
        return "not set"
    return "null" if recipe[key] is None else str(recipe[key])


def _summary(run: ComparedRun) -> tuple[str, ...]:
    tokens = run.steps[-1]["total_tokens"]
    seconds = sum(line["seconds"] for line in run.steps)
    losses = f"{run.validation[0]['loss']:z.4f} → {run.validation[-1]['loss']:z.4f}"
    return run.name, f"{run.steps[-1]['step']:,}", f"{tokens:,}", losses, f"{tokens / seconds:,.0f}"


def _evaluations(runs: Sequence[ComparedRun]) -> list[str]:
    scores = [dict(run.story.comparisons()) for run in runs]
    names = dict.fromkeys(name for each in scores for name in each)
    if not names:
        return []
    rows = [(name, *(_score(each.get(name)) for each in scores)) for name in names]
    note = "<p>After training, with 95 % intervals; a run that was not measured after it shows what was before.</p>"
    return [section("Evaluations", note, table(rows, ("", *(run.name for run in runs))))]


def _score(found: BeforeAfter | None) -> str:
    if found is None:
        return "not taken"
    if found.after is not None:
        return found.after.text
    return "not taken" if found.before is None else f"before: {found.before.text}"


def _curves(runs: Sequence[ComparedRun], paper: Theme) -> "Figure":
    figure, (axes,) = sheet(paper, [4.2])
    for number, run in enumerate(runs):
        colour = COLOURS[number % len(COLOURS)]
        x = [line["step"] for line in run.steps]
        y = np.array([line["loss"] for line in run.steps])
        marker = "o" if len(x) == 1 else None
        axes.plot(
            x, y if len(y) < SMOOTH_FROM else smooth(y), color=colour, linewidth=1.6, marker=marker, label=run.name
        )
        points = [[line[key] for line in run.validation] for key in ("step", "loss")]
        axes.plot(*points, color=colour, marker="o", markersize=5, linewidth=0)
    axes.set_xlabel("step")
    axes.set_ylabel("loss per taught token (nats)")
    legend(axes, paper)
    return figure
