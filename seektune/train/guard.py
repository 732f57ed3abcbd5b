"""Guards of a run: non-finite steps, loss spikes and phases that hang."""

import faulthandler
import os
import sys
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path
from statistics import median
from threading import Event, Thread
from time import monotonic
from typing import Self, TypedDict

from seektune.exit_codes import FAILURE
from seektune.io.json_file import MOST_STEPS, is_number, whole_number
from seektune.io.run_files import STUCK
from seektune.train.config import GuardConfig

MEMORY = 32
"""Number of past losses whose median a spike is compared with."""
ENOUGH = 8
"""Minimum number of past losses to detect a spike."""
RETURNS = 3
"""Maximum rollbacks to the same checkpoint."""
PATIENCE = 10.0
"""Seconds for writing the stacks of a process that hangs."""


class SpikeError(ArithmeticError):
    """The loss spikes with other data too; a rollback does not help."""


class GuardState(TypedDict):
    """The state of a guard in a checkpoint."""

    recent: list[float]
    skipped: int


class LossGuard:
    """Counts non-finite steps and rollbacks, and detects loss spikes."""

    def __init__(self, config: GuardConfig):
        self._config = config
        self._recent: deque[float] = deque(maxlen=MEMORY)
        self._skipped = 0
        self._returns = Counter[int]()

    def state_dict(self) -> GuardState:
        """State with which a resumed run behaves like an uninterrupted one."""
        return {"recent": list(self._recent), "skipped": self._skipped}

    def load_state_dict(self, state: GuardState) -> None:
        """Go on where another guard stood.

        Raises:
            ValueError: the state is damaged.
        """
        recent = state.get("recent") if isinstance(state, dict) else None
        if not isinstance(recent, list) or not all(map(is_number, recent)):
            raise ValueError("its recent losses are not a list of numbers")
        self._recent = deque(recent, maxlen=MEMORY)
        self._skipped = whole_number(state, "skipped", 0, MOST_STEPS)

    def may_skip(self) -> bool:
        """Whether one more non-finite step may be skipped."""
        if self._skipped >= self._config.skip_nonfinite:
            return False
        self._skipped += 1
        return True

    def may_go_back(self, step: int) -> bool:
        """Whether the run may roll back to the checkpoint of `step` once more."""
        self._returns[step] += 1
        return self._returns[step] <= RETURNS

    def spike(self, loss: float) -> float | None:
        """The median loss if this one is a spike, else None; a loss that is not a spike is added to the past ones."""
        self._skipped = 0
        usual = median(self._recent) if len(self._recent) >= ENOUGH else None
        factor = self._config.spike_factor
        if factor is not None and usual is not None and loss > factor * usual:
            return usual
        self._recent.append(loss)
        return None


class Watchdog:
    """Exits the process if a phase takes longer than a timeout; a context manager. No timeout: does nothing."""

    def __init__(self, limit: float | None, folder: Path):
        self._limit = limit
        self._folder = folder
        self._phase = "starting"
        self._since = monotonic()
        self._over = Event()

    def __enter__(self) -> Self:
        if self._limit is not None:
            Thread(target=self._look, args=(self._limit,), name="watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def __call__(self, phase: str) -> None:
        """Start a phase of the loop."""
        self._phase = phase
        self._since = monotonic()

    def _look(self, limit: float) -> None:
        while not self._over.wait(min(limit / 4, 5.0)):
            lasted = monotonic() - self._since
            if lasted > limit:
                self._end(lasted)

    def _end(self, lasted: float) -> None:
        print(
            f"seektune: stuck in {self._phase} for {lasted:.0f} s (guard.step_timeout); {self._folder / STUCK} says "
            "where; the same command resumes from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        # in a thread, and after the sentence: where the disk is what hangs, this would hang too
        telling = Thread(target=self._tell_where, daemon=True)
        telling.start()
        telling.join(PATIENCE)
        os._exit(FAILURE)

    def _tell_where(self) -> None:
        with suppress(OSError), (self._folder / STUCK).open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)
