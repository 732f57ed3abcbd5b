"""The run's report: loss.png and a self-contained report.html, generated from the files of the run folder."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from seektune.io.atomic import write_atomically
from seektune.io.jsonl import read_records
from seektune.io.run_files import CONTENTS, EXPERT_LOADS, LOSS_CURVE, METRICS, REPORT, VALIDATION
from seektune.model.distillation import DIVERGENCE
from seektune.train.evaluation_log import read_if_there
from seektune.train.held_out import held_out, held_out_changes
from seektune.train.index_recall import RECALL_HEAD, recall_table
from seektune.train.plot_style import in_both_themes
from seektune.train.plots import load_figure, loss_figure
from seektune.train.report_divergence import divergence_sections
from seektune.train.report_evaluations import evaluation_sections
from seektune.train.report_html import cards, folded, page, picture, section, table
from seektune.train.report_noise import noise_sections
from seektune.train.report_preferences import preference_sections
from seektune.train.report_rewards import reward_sections
from seektune.train.report_text import EvalText, ReportText
from seektune.train.router_health import HEAD, health_table
from seektune.train.score_plot import score_figure


def write_report(folder: Path, story: ReportText) -> Path:
    """Write loss.png and report.html; returns the latter's path.

    Raises:
        OSError: a file could not be written; none is left half-written.
    """
    steps = _steps(folder)
    validation = read_records(folder / VALIDATION)
    curves = _curves(steps, validation)
    write_atomically(folder / LOSS_CURVE, curves[0])
    parts = _parts(folder, story, steps, validation, curves)
    write_atomically(folder / REPORT, page(story.title, _lead(steps), parts))
    return folder / REPORT


def live_report(folder: Path, story: ReportText, refresh: int) -> str:
    """The report of a run that has not finished, as a page that loads itself again every `refresh` seconds.

    Raises:
        ValueError, OSError: a file of the run folder cannot be read.
    """
    steps = _steps(folder)
    validation = read_if_there(folder / VALIDATION)
    if not steps or not validation:
        return page(story.title, "No step is finished yet.", [section("Model and data", table(story.facts))], refresh)
    parts = _parts(folder, story, steps, validation, _curves(steps, validation))
    return page(story.title, f"{_lead(steps)} so far", parts, refresh)


def _curves(steps: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> tuple[bytes, bytes]:
    """The loss figure, light and dark."""
    return in_both_themes(lambda paper: loss_figure(steps, validation, paper))


def _parts(
    folder: Path,
    story: ReportText,
    steps: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    curves: tuple[bytes, bytes],
) -> list[str]:
    """HTML of all sections; `curves` is the loss figure, light and dark."""
    return [
        cards(_headlines(steps, validation, story)),
        *divergence_sections(steps, validation),
        section("Loss", picture(*curves, _loss_caption(steps, validation))),
        *preference_sections(steps, validation),
        *reward_sections(steps, validation),
        *(_eval(each) for each in story.evals),
        *evaluation_sections(folder),
        *_indexers(steps),
        *_loads(read_if_there(folder / EXPERT_LOADS)),
        *noise_sections(steps),
        section("What was trained", table(story.facts)),
        section("Results", table(_results(steps, validation, story), ("", "before", "after"))),
        section("Recipe", folded("the recipe as it ran", story.recipe)),
        section("Files", table(_files(folder))),
    ]


def _steps(folder: Path) -> list[dict[str, Any]]:
    """The lines of finished steps."""
    return [line for line in read_if_there(folder / METRICS) if "loss" in line]


def _headlines(
    steps: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], story: ReportText
) -> list[tuple[str, str]]:
    changes = held_out_changes(validation[0], validation[-1])
    found = [(f"{first:.3f} → {last:.3f}", f"{name}, before → after") for name, first, last in changes]
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
    name = "Loss, which is the divergence from the teachers," if DIVERGENCE in validation[-1] else "Loss"
    rows = f"{name} on held-out rows: {validation[0]['loss']:.3f} before, {validation[-1]['loss']:.3f} after"
    return f"{rows} {len(steps):,} steps."


def _eval(found: EvalText) -> str:
    heading = found.title[0].upper() + found.title[1:]
    return section(
        heading, picture(*in_both_themes(lambda paper: score_figure(found.comparisons, paper)), found.caption)
    )


def _loads(moments: Sequence[Mapping[str, Any]]) -> list[str]:
    if not moments:
        return []
    caption = "Tokens per routed expert, over the mean of its layer. The layer after the last is the MTP block's."
    figure = picture(*in_both_themes(lambda paper: load_figure(moments, paper)), caption)
    return [section("Expert loads", figure, table(health_table(moments[-1]), HEAD))]


def _indexers(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = recall_table(steps)
    return [section("Indexers", table(rows, RECALL_HEAD))] if rows else []


def _results(
    steps: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], story: ReportText
) -> list[tuple[str, str, str]]:
    rows = [
        *((name, f"{a:z.4f}", f"{b:z.4f}") for name, a, b in held_out_changes(validation[0], validation[-1])),
        *_by_dataset(validation[0], validation[-1]),
        ("training loss (first and last step)", f"{steps[0]['loss']:z.4f}", f"{steps[-1]['loss']:z.4f}"),
    ]
    scores = [
        (name, each.before.text if each.before else "not taken", each.after.text if each.after else "not taken")
        for name, each in story.comparisons()
    ]
    return rows + scores


def _by_dataset(first: Mapping[str, Any], last: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The validation loss of each dataset, if there are several; with teachers their divergence."""
    name = held_out(last)[0] if DIVERGENCE in last else "validation loss"
    after = last.get("datasets", {})
    before = first.get("datasets", {})
    return [(f"{name} on {label}", f"{before[label]:z.4f}", f"{after[label]:z.4f}") for label in after]


def _files(folder: Path) -> list[tuple[str, str]]:
    return [(name, words) for name, words in CONTENTS.items() if name == LOSS_CURVE or (folder / name).exists()]
