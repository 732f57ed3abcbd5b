"""Signals to the launcher: the first is forwarded to the workers, a second request kills them."""

import signal
import sys
from collections.abc import Callable
from time import monotonic
from types import FrameType
from typing import Any, Self

from seektune.signals import SIGNALS, StopRequests, exit_on_second_signal, write_stderr


class SignalRelay:
    """Records the first signal while entered; the agent's loop reads it. Only the main thread may enter it."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._requests = StopRequests(clock)
        self.signal: signal.Signals | None = None
        """The first signal, received here or on another node; one of another node is not a request here."""
        self.on_second_signal: Callable[[], None] = lambda: None
        """Called before a second request ends the process."""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._requests.is_second(number):
            self.on_second_signal()
            exit_on_second_signal(number, "workers killed")
        if self.signal is not None:
            return
        self.signal = signal.Signals(number)
        name = self.signal.name
        if sys.stderr.isatty():
            write_stderr(f"\nseektune: {name}: workers are finishing the step and saving; press again to kill them\n")
