"""Runs the evaluation tasks before and after training, and stores their scores in evaluation.json."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from rich.progress import Progress, TaskID

from seektune.evaluate.config import DRAFTER, EvaluateConfig
from seektune.evaluate.likelihood import Progress as Advance
from seektune.evaluate.statistics import Change
from seektune.evaluate.task import Task, TaskInfo, TaskScore
from seektune.io.atomic import write_atomically
from seektune.io.console import say
from seektune.io.json_file import as_json, read_json
from seektune.io.run_files import EVALUATION
from seektune.parallel.model import ParallelModel
from seektune.run.context import RunContext
from seektune.run.data import TrainData
from seektune.run.decoding import run_decoding

Scores: TypeAlias = Mapping[str, TaskScore]
"""By the task's name; a task that did not run has none."""


@dataclass(frozen=True)
class TaskComparison:
    """A task's scores before and after training; at least one is not None."""

    task: TaskInfo
    before: TaskScore | None
    after: TaskScore | None

    @property
    def n(self) -> int:
        """Number of items of the newer score."""
        score = self.after or self.before
        return 0 if score is None else score.n

    def changes(self) -> dict[str, Change]:
        """Changes by metric; empty if a score is missing."""
        return {} if self.before is None or self.after is None else self.after.since(self.before)


def compare(before: Scores, after: Scores) -> list[TaskComparison]:
    """Each task that ran before or after training."""
    tasks = {name: score.task for name, score in {**before, **after}.items()}
    return [TaskComparison(task, before.get(name), after.get(name)) for name, task in tasks.items()]


def run_eval(
    wanted: bool, when: str, run: RunContext, model: ParallelModel, data: TrainData, config: EvaluateConfig
) -> Scores:
    """Run the tasks if `wanted`. A signal may end the run after each forward."""
    found = {}
    for task in data.tasks.scored if wanted else []:
        title = f"{task.info.title} {when} training"
        with Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
            shown = bar.add_task(title, total=None)
            show = partial(_show, bar, shown)
            score = run_task(run, task, model, data, config.batch_tokens, show)
        say(f"{title}: {', '.join(f'{label} {text}' for label, text in score.lines())}")
        found[task.info.name] = score
    return found


def run_task(
    run: RunContext,
    task: Task,
    model: ParallelModel,
    data: TrainData,
    batch_tokens: int,
    show: Advance,
    alive: Callable[[], None] = lambda: None,
) -> TaskScore:
    """The score of a task, on all processes; `show` receives its progress, and `alive` is that of `run_decoding`.

    Raises:
        ArithmeticError: the model gives no number.
        Interrupted: a signal asked to stop.
    """
    together = _stopping(show, run.stop_if_signalled)
    if not task.decodes:
        return task.run(model, data.tokenizer, batch_tokens, together)
    alone = _stopping(show, run.stop_alone_if_signalled)
    drafts = task.info.name == DRAFTER
    return run_decoding(run, model, lambda whole: task.run(whole, data.tokenizer, batch_tokens, alone), alive, drafts)


def read_evals(folder: Path, when: str, tasks: Sequence[Task]) -> Scores:
    """The scores of tasks that are already in evaluation.json."""
    if not (folder / EVALUATION).is_file():
        return {}
    values = read_json(folder / EVALUATION)
    held = {task.info.name: (task.info, values.get(task.info.name, {}).get(when)) for task in tasks}
    return {name: TaskScore.from_dict(info, score) for name, (info, score) in held.items() if score is not None}


def write_evals(folder: Path, before: Scores, after: Scores) -> None:
    """Write evaluation.json: `before` and `after` of each task; null for a score that is missing (so far).

    Raises:
        OSError: it could not be written.
    """
    values = {
        each.task.name: {"before": each.before and each.before.to_dict(), "after": each.after and each.after.to_dict()}
        for each in compare(before, after)
    }
    write_atomically(folder / EVALUATION, as_json(values))


def _show(bar: Progress, shown: TaskID, done: int, total: int) -> None:
    bar.update(shown, completed=done, total=total)


def _stopping(show: Advance, stop: Callable[[], None]) -> Advance:
    def advance(done: int, total: int) -> None:
        show(done, total)
        stop()

    return advance
