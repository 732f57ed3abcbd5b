"""Signals that ask a run to stop: it finishes the step, saves, and exits with a code that says it can be resumed."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from threading import Thread
from time import monotonic
from types import FrameType
from typing import Any, NoReturn, Self

from seektune.exit_codes import BY_SIGNAL

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SHOW_CURSOR = "\x1b[?25h"
"""Terminal code; a progress bar may have hidden the cursor."""
SAME_REQUEST = 1.0
"""Seconds within which the same signal again is the same request."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop."""


class StopRequests:
    """Counts requests to stop, which are fewer than the signals that are delivered.

    `timeout`, schedulers and terminals signal a process and then its whole group, so one request arrives twice.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._first: int | None = None
        self._time = 0.0

    def is_second(self, number: int) -> bool:
        """Record a signal; True if it is another request: another signal than the first, or the same one later."""
        now = self._clock()
        if self._first is None:
            self._first = number
            self._time = now
            return False
        return number != self._first or now - self._time > SAME_REQUEST


class DeliveryWatch:
    """Ends the process on a second request to stop, counted when its signals are delivered.

    Python calls a handler between two bytecodes of the main thread, which a backward pass can delay by many seconds. A
    thread reads the numbers that the interpreter writes to a pipe at delivery.
    """

    def __init__(self, requests: StopRequests) -> None:
        self._requests = requests

    def __enter__(self) -> Self:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._previous = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._thread = Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._previous)
        os.close(self._write_end)
        self._thread.join()
        os.close(self._read_end)

    def _watch(self) -> None:
        while numbers := os.read(self._read_end, 64):
            for number in numbers:
                if number in SIGNALS and self._requests.is_second(number):
                    exit_on_second_signal(number, "exited without saving")


class Interruption:
    """Turns a signal into `Interrupted` while entered: at once, or at the end of a `deferred` block.

    A second request ends the process at once. Workers ignore it and the launcher exits on it: other workers wait for
    this one, and systems that signal every process of a job signal a worker twice. Only the main thread may enter it.
    """

    def __init__(self, worker: bool = False, clock: Callable[[], float] = monotonic) -> None:
        self._watch = nullcontext() if worker else DeliveryWatch(StopRequests(clock))
        self.name: str | None = None
        """The first signal that arrived."""
        self._depth = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._watch.__enter__()
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._watch.__exit__(None, None, None)

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
        if self.name is not None:
            return
        name = signal.Signals(number).name
        self.name = name
        if sys.stderr.isatty():
            # for a user at a terminal; in a log the last line is enough
            write_stderr(f"\nseektune: {name}: finishing the step and saving; press again to exit without saving\n")
        if self._depth == 0:
            raise Interrupted(self.name)


def ignore_stop_signals() -> None:
    """Ignore them from now on: a process that ends because of one must not be killed by its repetition."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def exit_on_second_signal(number: int, outcome: str) -> NoReturn:
    """Exit at once, with a line that says why and what became of the run."""
    show_cursor = SHOW_CURSOR if sys.stderr.isatty() else ""
    write_stderr(f"{show_cursor}seektune: second {signal.Signals(number).name}: {outcome}\n")
    os._exit(BY_SIGNAL + number)


def write_stderr(line: str) -> None:
    """Write unbuffered, as a signal may arrive in the middle of a print."""
    with suppress(OSError):
        os.write(2, line.encode())
