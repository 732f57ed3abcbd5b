"""Signals to the launcher: the first is forwarded to the workers, a second kills them."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Self

from seektune.signals import SHOW_CURSOR, SIGNALS


class SignalRelay:
    """Records the first signal while entered; the agent's loop reads it. Only the main thread may enter it."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first signal, received here or on another node."""
        self.on_second_signal: Callable[[], None] = lambda: None
        """Called before a second signal ends the process."""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signal is not None:
            self.on_second_signal()
            _write(f"{SHOW_CURSOR if sys.stderr.isatty() else ''}seektune: second {name}: workers killed\n")
            os._exit(128 + number)
        self.signal = signal.Signals(number)
        if sys.stderr.isatty():
            _write(f"\nseektune: {name}: workers are finishing the step and saving; press again to kill them\n")


def _write(line: str) -> None:
    """Write unbuffered, as a signal may arrive in the middle of a print."""
    with suppress(OSError):
        os.write(2, line.encode())
