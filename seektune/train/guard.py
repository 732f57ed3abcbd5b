"""Guards of a run: steps that are not finite, losses that spike, and phases that hang."""

import faulthandler
import os
import sys
from collections import deque
from pathlib import Path
from statistics import median
from threading import Event, Thread
from time import monotonic
from typing import Self

from seektune.train.config import GuardConfig

MEMORY = 32
"""Losses that a spike is measured against."""
ENOUGH = 8
"""Losses that must be known before anything counts as a spike."""
STUCK = "stuck.txt"
"""In the run folder: where every thread of a stuck process stood."""


class LossGuard:
    """Knows which losses are usual."""

    def __init__(self, config: GuardConfig):
        self._config = config
        self._recent: deque[float] = deque(maxlen=MEMORY)
        self._skipped = 0

    def may_skip(self) -> bool:
        """Whether one more step that is not finite may be left out."""
        self._skipped += 1
        return self._skipped <= self._config.skip_nonfinite

    def spike(self, loss: float) -> float | None:
        """The usual loss, if this one is a spike above it; a loss that is none becomes part of the usual ones."""
        self._skipped = 0
        usual = median(self._recent) if len(self._recent) >= ENOUGH else None
        factor = self._config.spike_factor
        if factor is not None and usual is not None and loss > factor * usual:
            return usual
        self._recent.append(loss)
        return None


class Watch:
    """Ends the process when a phase takes longer than a limit; a context manager. Without a limit it only listens."""

    def __init__(self, limit: float | None, folder: Path):
        self._limit, self._folder = limit, folder
        self._phase, self._since = "starting", monotonic()
        self._over = Event()

    def __enter__(self) -> Self:
        if self._limit is not None:
            Thread(target=self._look, args=(self._limit,), name="watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def __call__(self, phase: str) -> None:
        """A phase of the loop begins."""
        self._phase, self._since = phase, monotonic()

    def _look(self, limit: float) -> None:
        while not self._over.wait(min(limit / 4, 5.0)):
            lasted = monotonic() - self._since
            if lasted > limit:
                self._end(lasted)

    def _end(self, lasted: float) -> None:
        place = self._folder / STUCK
        with place.open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        print(
            f"seektune: stuck in {self._phase} for {lasted:.0f} s (guard.step_timeout); {place} says where; "
            "the same command resumes from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
