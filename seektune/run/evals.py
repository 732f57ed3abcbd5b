"""HellaSwag before and after training, shown as it goes and kept in the run folder."""

import sys
from collections.abc import Callable
from pathlib import Path

from rich.progress import Progress

from seektune.evaluate.config import EvaluateConfig
from seektune.evaluate.hellaswag import HellaswagScore, evaluate_hellaswag
from seektune.io.atomic import write_atomically
from seektune.io.console import say
from seektune.io.json_file import as_json, read_json
from seektune.io.run_files import EVALUATION
from seektune.parallel.model import ParallelModel
from seektune.run.data import TrainData
from seektune.run.summary import in_words


def run_eval(
    wanted: bool,
    when: str,
    model: ParallelModel,
    lesson: TrainData,
    config: EvaluateConfig,
    leave: Callable[[], None] = lambda: None,
) -> HellaswagScore | None:
    """Score the model on the lesson's questions, if that is wanted; after each forward is the time to `leave`."""
    if not wanted:
        return None

    def advance(done: int, _: int) -> None:
        progress.update(task, completed=done)
        leave()

    with Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task(f"HellaSwag {when} training", total=len(lesson.questions) * 4)
        score = evaluate_hellaswag(
            model,
            lesson.tokenizer,
            lesson.questions,
            config.batch_tokens,
            advance,
        )
    say(f"HellaSwag {when} training, {score.n:,} questions: {in_words(score)}")
    return score


def read_evals(folder: Path, when: str) -> HellaswagScore | None:
    """A score that evaluation.json already holds."""
    if not (folder / EVALUATION).is_file():
        return None
    values = read_json(folder / EVALUATION)["hellaswag"][when]
    return None if values is None else HellaswagScore.from_dict(values)


def write_evals(folder: Path, before: HellaswagScore | None, after: HellaswagScore | None) -> None:
    """Write evaluation.json; null for an exam that was not held (yet).

    Raises:
        OSError: it could not be written.
    """
    found = {"before": before, "after": after}
    values = {"hellaswag": {when: score and score.to_dict() for when, score in found.items()}}
    write_atomically(folder / EVALUATION, as_json(values))
