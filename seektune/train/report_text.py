"""The texts of a run's report, also as a file of the run folder, from which the report can be written again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seektune.io.atomic import write_atomically
from seektune.io.json_file import as_json, read_json
from seektune.io.run_files import RECIPE, REPORT_TEXT
from seektune.io.text import read_text
from seektune.train.score_plot import BeforeAfter, Reference, Score


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


def write_texts(folder: Path, story: ReportText) -> None:
    """Write report.json.

    Raises:
        OSError: writing failed.
    """
    write_atomically(
        folder / REPORT_TEXT, as_json({key: value for key, value in asdict(story).items() if key != "recipe"})
    )


def read_texts(folder: Path) -> ReportText:
    """The texts of a run folder; of a run from before there was report.json, its name and recipe.

    Raises:
        ValueError: report.json is damaged, or the recipe cannot be read.
        OSError: a file cannot be read.
    """
    recipe = read_text(folder / RECIPE)
    if not (folder / REPORT_TEXT).is_file():
        return ReportText(folder.absolute().name, [], recipe, [])
    values = read_json(folder / REPORT_TEXT)
    try:
        facts = [(str(name), str(value)) for name, value in values["facts"]]
        return ReportText(str(values["title"]), facts, recipe, [_eval_text(each) for each in values["evals"]])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{folder / REPORT_TEXT} is damaged; remove it to make a report without its texts") from None


def _eval_text(values: Mapping[str, Any]) -> EvalText:
    return EvalText(**{**values, "comparisons": [_comparison(each) for each in values["comparisons"]]})


def _comparison(values: Mapping[str, Any]) -> BeforeAfter:
    reference = values["reference"]
    scores = {when: None if values[when] is None else Score(**values[when]) for when in ("before", "after")}
    return BeforeAfter(**{**values, **scores, "reference": None if reference is None else Reference(**reference)})
