"""Signals that ask a run to stop: it finishes what must not be cut, saves, and says that it can be resumed."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, Self

from seektune.exit_codes import BY_SIGNAL

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SHOW_CURSOR = "\x1b[?25h"
"""A progress bar may have hidden it."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop."""


class Interruption:
    """While entered, turns a signal into `Interrupted`: at once, or where `deferred` says so at the end of that part.

    A second signal ends the process at once, but not a `worker`: others wait for it, ending is its launcher's business,
    and systems that signal every process of a job signal a worker twice. Only the main thread may enter it.
    """

    def __init__(self, worker: bool = False) -> None:
        self._worker = worker
        self.name: str | None = None
        """The signal that came first."""
        self._depth = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A part that is finished before a signal takes effect."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self.name is not None and self._depth == 0:
            raise Interrupted(self.name)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """A part that is finished although a signal came: the last save."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def leave_together(self, anywhere: Callable[[bool], bool]) -> None:
        """Stop here if a signal reached any process of the job; `anywhere` tells whether a flag is set in one of them.

        Raises:
            Interrupted: on every process.
        """
        if anywhere(self.name is not None):
            raise Interrupted(self.name or "a signal to another process")

    def _take(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.name is not None and self._worker:
            return
        if self.name is not None:
            end_at_once(number)
        self.name = name
        if sys.stderr.isatty():
            # somebody waits at a terminal; in a log the line at the end is enough
            write_stderr(f"\nseektune: {name}: finishing what must be finished; once more ends at once\n")
        if self._depth == 0:
            raise Interrupted(self.name)


def end_at_once(number: int) -> NoReturn:
    """End this process because a signal came again."""
    show_cursor = SHOW_CURSOR if sys.stderr.isatty() else ""
    write_stderr(f"{show_cursor}seektune: {signal.Signals(number).name} again: ended at once\n")
    os._exit(BY_SIGNAL + number)


def write_stderr(line: str) -> None:
    """Write past all buffers, as a signal may come in the middle of a print."""
    with suppress(OSError):
        os.write(2, line.encode())
