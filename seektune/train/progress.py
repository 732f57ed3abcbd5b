"""Console display of a training run: a progress bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from seektune.io.console import say
from seektune.io.text import printable
from seektune.model.distillation import ENTROPY, OF_TEACHER
from seektune.model.step_loss import INDEXER_LOSS
from seektune.train.index_recall import INDEX_RECALL, mean_recall
from seektune.train.step import StepRecord

SHOWN = (INDEXER_LOSS, INDEX_RECALL, ENTROPY, "reward", "mismatch_mean", "mismatch_max", "mismatch_share")
"""Parts of a step that are shown beside its loss."""


class Display(Protocol):
    """Displays steps and messages."""

    def step(self, record: StepRecord) -> None:
        """Show a step."""

    def say(self, sentence: str) -> None:
        """Show a message."""

    def close(self) -> None:
        """End the display."""


class ProgressBar:
    """A progress bar with loss, speed, memory and time left."""

    def __init__(self, steps: int, done: int):
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(),
            expand=True,
        )
        self._task = self._progress.add_task("training", total=steps, completed=done, numbers="")
        self._progress.start()

    def step(self, record: StepRecord) -> None:
        """Advance the bar."""
        numbers = f"loss {record.loss:z.4f}{_parts(record)} · {_speed(record)}"
        self._progress.update(self._task, completed=record.step, numbers=numbers)

    def say(self, sentence: str) -> None:
        """Print above the bar."""
        self._progress.console.print(printable(sentence), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Restore the terminal."""
        self._progress.stop()


class ProgressLines:
    """A line every `every` steps, and for the first and last."""

    def __init__(self, steps: int, every: int, done: int):
        self._steps = steps
        self._every = every
        self._done = done
        self._seconds = 0.0

    def step(self, record: StepRecord) -> None:
        """Print the step if it is due."""
        self._seconds += record.seconds + record.parts.get("rollout_seconds", 0.0)
        if record.step % self._every and record.step not in (self._done + 1, self._steps):
            return
        mean = self._seconds / (record.step - self._done)
        left = timedelta(seconds=round(mean * (self._steps - record.step)))
        rate = f"norm {record.grad_norm:.3g} · lr {record.lr:.3g} · {_speed(record)}"
        numbers = f"loss {record.loss:z.4f}{_parts(record)} · {rate}"
        self.say(f"step {record.step}/{self._steps} · {numbers} · {left} left")

    def say(self, sentence: str) -> None:
        """Print at once, also into a pipe."""
        say(sentence)

    def close(self) -> None:
        """Does nothing."""


def open_display(steps: int, every: int, done: int = 0) -> Display:
    """The display for standard output; plain lines come every `every` steps, `done` steps were made before."""
    return ProgressBar(steps, done) if sys.stdout.isatty() else ProgressLines(steps, every, done)


def chosen_parts(parts: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """The divergence from each of several teachers, and the parts with these names that there are."""
    teachers = {name: value for name, value in parts.items() if name.startswith(OF_TEACHER)}
    return teachers | {name: parts[name] for name in names if name in parts}


def _parts(record: StepRecord) -> str:
    shown = chosen_parts(record.parts | mean_recall(record.index_recall), SHOWN)
    return "".join(f" · {name.replace('_', ' ')} {value:.3g}" for name, value in shown.items())


def _speed(record: StepRecord) -> str:
    return f"{record.tokens_per_s:,.0f} tokens/s · {record.memory_gb:.1f} GB"
