"""The interface between the training loop and the logs of a run, and the log of processes that write none."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

from seektune.data.held_out_loss import HeldOutLoss
from seektune.train.log_state import LogState
from seektune.train.step import StepRecord


class RunLog(Protocol):
    """The interface between the training loop and the logs."""

    def step(self, record: StepRecord) -> None:
        """Log a step."""

    def validation(self, step: int, found: HeldOutLoss) -> None:
        """Log the validation loss after a step."""

    def evaluation(self, step: int, name: str, lines: Sequence[tuple[str, str]], values: Mapping[str, float]) -> None:
        """Log a task's result after a step: label and text of each line, and its metrics."""

    def samples(self, step: int, name: str, answers: Sequence[Mapping[str, Any]]) -> None:
        """Log answers to fixed prompts after a step."""

    def evaluated(self) -> set[tuple[int, str]]:
        """Step and name of the results of tasks and samples so far; on rank 0 alone."""
        ...

    def skipped(self, step: int, reason: str) -> None:
        """Log a skipped step."""

    def not_saved(self, step: int, reason: str) -> None:
        """A checkpoint that was written beside the training failed; training is at `step`."""

    def say(self, sentence: str) -> None:
        """Log a message."""

    def rewind(self, last_step: int, state: LogState | None) -> None:
        """Remove everything after a step."""

    def validations(self) -> dict[int, float]:
        """The validation losses so far, by step."""
        ...

    def state_dict(self) -> LogState:
        """State for a checkpoint."""
        ...


class SilentLog:
    """The log of a process other than rank 0, which writes nothing."""

    def __init__(self, validations: Mapping[int, float]):
        self._validations = dict(validations)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: Any) -> None:
        """Nothing is open."""

    def step(self, record: StepRecord) -> None:
        """As `RunLog`."""

    def validation(self, step: int, found: HeldOutLoss) -> None:
        """As `RunLog`."""
        self._validations[step] = found.loss

    def evaluation(self, step: int, name: str, lines: Sequence[tuple[str, str]], values: Mapping[str, float]) -> None:
        """As `RunLog`."""

    def samples(self, step: int, name: str, answers: Sequence[Mapping[str, Any]]) -> None:
        """As `RunLog`."""

    def evaluated(self) -> set[tuple[int, str]]:
        """As `RunLog`."""
        return set()

    def skipped(self, step: int, reason: str) -> None:
        """As `RunLog`."""

    def not_saved(self, step: int, reason: str) -> None:
        """As `RunLog`."""

    def say(self, sentence: str) -> None:
        """As `RunLog`."""

    def rewind(self, last_step: int, state: LogState | None) -> None:
        """As `RunLog`."""
        self._validations = {step: loss for step, loss in self._validations.items() if step <= last_step}

    def validations(self) -> dict[int, float]:
        """As `RunLog`."""
        return dict(self._validations)

    def state_dict(self) -> LogState:
        """As `RunLog`; the state in the checkpoint is that of rank 0."""
        return {"total_tokens": 0, "loads": {}}
