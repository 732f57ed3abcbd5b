"""The run's report: loss.png and a self-contained report.html, generated from the files of the run folder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from seektune.io.atomic import write_atomically
from seektune.io.jsonl import read_records
from seektune.io.run_files import CONTENTS, EXPERT_LOADS, LOSS_CURVE, METRICS, REPORT, VALIDATION
from seektune.train.plot_style import in_both_themes
from seektune.train.plots import load_figure, loss_figure
from seektune.train.report_evaluations import evaluation_sections
from seektune.train.report_html import cards, folded, page, picture, section, table
from seektune.train.score_plot import BeforeAfter, score_figure


@dataclass(frozen=True)
class EvalText:
    """The report's texts about an evaluation task."""

    title: str
    caption: str
    """Description of the scores."""
    comparisons: Sequence[BeforeAfter]


@dataclass(frozen=True)
class ReportText:
    """The report's texts; the numbers are read from the run folder."""

    title: str
    facts: Sequence[tuple[str, str]]
    """Model, data and settings, as name and value."""
    recipe: str
    evals: Sequence[EvalText]
    """Tasks that ran before or after training."""

    def comparisons(self) -> Iterator[tuple[str, BeforeAfter]]:
        """Every score before and after, with its full name."""
        for each in self.evals:
            yield from ((f"{each.title} {score.name}", score) for score in each.comparisons)


def write_report(folder: Path, story: ReportText) -> Path:
    """Write loss.png and report.html; returns the latter's path.

    Raises:
        OSError: a file could not be written; none is left half-written.
    """
    lines, validation, loads = (read_records(folder / name) for name in (METRICS, VALIDATION, EXPERT_LOADS))
    steps = [line for line in lines if "loss" in line]
    curve, dark_curve = in_both_themes(lambda paper: loss_figure(steps, validation, paper))
    write_atomically(folder / LOSS_CURVE, curve)
    parts = [
        cards(_headlines(steps, validation, story)),
        section("Loss", picture(curve, dark_curve, _loss_caption(steps, validation))),
        *(_eval(each) for each in story.evals),
        *evaluation_sections(folder),
        *_loads(loads),
        section("What was trained", table(story.facts)),
        section("Results", table(_results(steps, validation, story), ("", "before", "after"))),
        section("Recipe", folded("the recipe as it ran", story.recipe)),
        section("Files", table(_files(folder))),
    ]
    text = page(story.title, _lead(steps), parts)
    write_atomically(folder / REPORT, text)
    return folder / REPORT


def _headlines(
    steps: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], story: ReportText
) -> list[tuple[str, str]]:
    found = [(f"{validation[0]['loss']:.3f} → {validation[-1]['loss']:.3f}", "validation loss, before → after")]
    for name, each in story.comparisons():
        numbers = [score.short for score in (each.before, each.after) if score is not None]
        taken = "before → after" if len(numbers) == 2 else "before" if each.before else "after"
        found.append((" → ".join(numbers), f"{name}, {taken}"))
    seconds = sum(line["seconds"] for line in steps)
    return [*found, (f"{steps[-1]['total_tokens'] / seconds:,.0f}", "tokens per second")]


def _lead(steps: Sequence[Mapping[str, Any]]) -> str:
    seconds = timedelta(seconds=round(sum(line["seconds"] for line in steps)))
    return f"{len(steps):,} steps, {steps[-1]['total_tokens']:,} tokens, {seconds} of training"


def _loss_caption(steps: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> str:
    rows = f"Loss on held-out rows: {validation[0]['loss']:.3f} before, {validation[-1]['loss']:.3f} after"
    return f"{rows} {len(steps):,} steps."


def _eval(found: EvalText) -> str:
    heading = found.title[0].upper() + found.title[1:]
    return section(
        heading, picture(*in_both_themes(lambda paper: score_figure(found.comparisons, paper)), found.caption)
    )


def _loads(moments: Sequence[Mapping[str, Any]]) -> list[str]:
    caption = "Tokens per routed expert, over the mean of its layer. The layer after the last is the MTP block's."
    return [section("Expert loads", picture(*in_both_themes(lambda paper: load_figure(moments, paper)), caption))]


def _results(
    steps: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], story: ReportText
) -> list[tuple[str, str, str]]:
    rows = [
        ("validation loss", f"{validation[0]['loss']:.4f}", f"{validation[-1]['loss']:.4f}"),
        *_by_dataset(validation[0], validation[-1]),
        ("training loss (first and last step)", f"{steps[0]['loss']:.4f}", f"{steps[-1]['loss']:.4f}"),
    ]
    scores = [
        (name, each.before.text if each.before else "not taken", each.after.text if each.after else "not taken")
        for name, each in story.comparisons()
    ]
    return rows + scores


def _by_dataset(first: Mapping[str, Any], last: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The validation loss of each dataset, if there are several."""
    after = last.get("datasets", {})
    before = first.get("datasets", {})
    return [(f"validation loss on {name}", f"{before[name]:.4f}", f"{after[name]:.4f}") for name in after]


def _files(folder: Path) -> list[tuple[str, str]]:
    return [(name, words) for name, words in CONTENTS.items() if name == LOSS_CURVE or (folder / name).exists()]
