"""A loader whose batch size or row length changes at some steps of a run."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, TypedDict

from seektune.data.loader import Loader, LoaderState
from seektune.data.step_data import StepData
from seektune.io.json_file import whole_number

MOST_STEPS = 2**48
"""More steps than any run has."""


class StagedState(TypedDict):
    """The position of a loader with stages."""

    step: int
    """Steps drawn."""
    loader: LoaderState
    """Of the stage that the last of them belongs to."""


class StagedLoader:
    """One loader after another. A stage with the same rows continues where the one before it ended; one with other
    rows, cut at another length, begins an order of its own."""

    def __init__(self, stages: Sequence[tuple[int, Loader]]):
        """Args:
        stages: the first step of each stage and its loader; loaders of the same rows share a mixture.
        """
        self._firsts = [first for first, _ in stages]
        self._loaders = [loader for _, loader in stages]
        self._step = 0

    def next_step(self) -> StepData:
        """As `Loader.next_step`."""
        before = self._stage(self._step)
        self._step += 1
        now = self._stage(self._step)
        if now != before:
            self._loaders[now].load_state_dict(self._start_of(before, now))
        return self._loaders[now].next_step()

    def state_dict(self) -> StagedState:
        """The position between two steps."""
        return {"step": self._step, "loader": self._loaders[self._stage(self._step)].state_dict()}

    def load_state_dict(self, state: Any) -> None:
        """As `Loader.load_state_dict`.

        Raises:
            ValueError: the state is that of other data or of a run without stages, or damaged.
        """
        if not isinstance(state, dict) or "loader" not in state:
            raise ValueError("the run to resume had no batch.stages; resume with the same section batch")
        step = whole_number(state, "step", 0, MOST_STEPS)
        self._loaders[self._stage(step)].load_state_dict(state["loader"])
        self._step = step

    def _stage(self, step: int) -> int:
        """The stage of a step, counted from 1; before the first step, the first one."""
        return max(bisect_right(self._firsts, step) - 1, 0)

    def _start_of(self, before: int, now: int) -> LoaderState:
        """Where a stage begins."""
        mixture = self._loaders[now].mixture
        if mixture is self._loaders[before].mixture:
            return self._loaders[before].state_dict()
        return {"position": 0, "row": 0, "examples": mixture.sizes}
