"""Signals that ask a run to stop: it finishes the step, saves, and exits with a code that says it can be resumed."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
RESUME_ME = 75
"""Exit code of a run that stopped on request and resumes when started again (EX_TEMPFAIL of sysexits.h)."""


SHOW_CURSOR = "\x1b[?25h"
"""Terminal code; a progress bar may have hidden the cursor."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop."""


class Interruption:
    """Turns a signal into `Interrupted` while entered: at once, or at the end of a `deferred` block.

    A second signal ends the process at once. Workers ignore a second signal; the launcher exits on it: other workers
    wait for this one, and systems that signal every process of a job signal a worker twice. Only the main thread may
    enter it.
    """

    def __init__(self, worker: bool = False) -> None:
        self._worker = worker
        self.name: str | None = None
        """The first signal that arrived."""
        self._depth = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A block that completes before a signal takes effect."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self.name is not None and self._depth == 0:
            raise Interrupted(self.name)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """A block that a signal does not interrupt, and after which none is raised: the last save."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def leave_together(self, anywhere: Callable[[bool], bool]) -> None:
        """Stop here if any process of the job received a signal; `anywhere` is a logical or over all processes.

        Raises:
            Interrupted: on every process.
        """
        if anywhere(self.name is not None):
            raise Interrupted(self.name or "a signal to another process")

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.name is not None and self._worker:
            return
        if self.name is not None:
            _write(f"{SHOW_CURSOR if sys.stderr.isatty() else ''}seektune: second {name}: exited without saving\n")
            os._exit(128 + number)
        self.name = name
        if sys.stderr.isatty():
            # for a user at a terminal; in a log the last line is enough
            _write(f"\nseektune: {name}: finishing the step and saving; press again to exit without saving\n")
        if self._depth == 0:
            raise Interrupted(self.name)


def _write(line: str) -> None:
    """Write unbuffered, as a signal may arrive in the middle of a print."""
    with suppress(OSError):
        os.write(2, line.encode())
