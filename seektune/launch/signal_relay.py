"""Signals to the launcher: the first is passed on to the workers, a second ends everything at once."""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from seektune.signals import SIGNALS, end_at_once, write_stderr


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
        if self.signal is not None:
            self.at_once()
            end_at_once(number)
        self.signal = signal.Signals(number)
        if sys.stderr.isatty():
            write_stderr(
                f"\nseektune: {self.signal.name}: workers finish what must be finished; once more ends at once\n"
            )
