"""Signals to the launcher: the first is passed on to the workers, a second ends everything at once."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Self

from seektune.signals import SHOW_CURSOR, SIGNALS


class SignalRelay:
    """While entered, remembers the first signal; whoever loops looks at it. Only the main thread may enter it."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """What came first, or what another node passed on."""
        self.at_once: Callable[[], None] = lambda: None
        """Called before a second signal ends the process."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signal is not None:
            self.at_once()
            _say(f"{SHOW_CURSOR if sys.stderr.isatty() else ''}seektune: {name} again: ended at once\n")
            os._exit(128 + number)
        self.signal = signal.Signals(number)
        if sys.stderr.isatty():
            _say(f"\nseektune: {name}: workers finish what must be finished; once more ends at once\n")


def _say(line: str) -> None:
    """Write past all buffers, as a signal may come in the middle of a print."""
    with suppress(OSError):
        os.write(2, line.encode())
