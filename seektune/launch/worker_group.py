"""The workers of this node as one: asked to stop together, ended together when one fails, and why that was."""

import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic

from seektune.exit_codes import FAILURE, RESUME_ME, USER_MISTAKE
from seektune.launch.job import ORDERLY, Ending, LaunchConfig, stopped_early
from seektune.launch.worker import Worker

SETTLING = 3.0
"""Seconds in which the worker that failed first may still say why, after others lost it."""


class LocalWorkerGroup:
    """Watches workers that were started."""

    def __init__(self, workers: Sequence[Worker], job: LaunchConfig):
        self._workers = workers
        self._job = job
        self._asked: signal.Signals | None = None
        self._leaving = Since()
        self._failing = Since()

    def ask(self, request: signal.Signals) -> bool:
        """Pass on a signal that asks workers to save and leave; False if they were asked before."""
        if self._asked is not None:
            return False
        self._asked = request
        for worker in self._workers:
            worker.send(request)
        return True

    def kill(self) -> None:
        """End all at once; does not wait."""
        for worker in self._workers:
            worker.kill()

    def end(self) -> None:
        """End all, and wait until they are gone."""
        self.kill()
        for worker in self._workers:
            worker.bury()

    def look(self) -> Ending | None:
        """How the workers ended; None while they work. After a failure nobody is left."""
        codes = [worker.code() for worker in self._workers]
        if any(code is not None and not self._is_orderly(code) for code in codes):
            return self._failure()
        if None not in codes:
            return self._farewell(codes)
        if self._asked is not None or RESUME_ME in codes:
            return self._overdue()
        return None

    def _is_orderly(self, code: int) -> bool:
        """Whether a worker ended as it should; the signal itself ends one that has not begun to train."""
        return code in ORDERLY or code == -(self._asked or 0)

    def _farewell(self, codes: Sequence[int | None]) -> Ending:
        for worker in self._workers:
            worker.bury()
        if not any(codes):
            for worker in self._workers:
                worker.tell()
            return Ending()
        words = [worker.last_words for worker in self._workers if worker.last_words]
        if not words and self._asked is not None:
            return stopped_early(self._asked)
        return Ending(RESUME_ME, words[0] if words else f"stopped; {self._job.advice}")

    def _overdue(self) -> Ending | None:
        if self._leaving.seconds() < self._job.grace:
            return None
        late = [str(worker.rank) for worker in self._workers if worker.code() is None]
        self.end()
        ranks = f"rank{'s' if len(late) > 1 else ''} {', '.join(late)}"
        return Ending(
            FAILURE, f"{ranks} did not stop within {self._job.grace:g} s (--shutdown-timeout); {self._job.advice}"
        )

    def _failure(self) -> Ending | None:
        """The first failure, once it is known which one that is."""
        failed = [worker for worker in self._workers if self._may_have_failed(worker)]
        first = min(failed, key=lambda worker: (worker.is_widowed, worker.when))
        unclear = first.is_widowed or first.code() is None
        if unclear and self._failing.seconds() < SETTLING:
            return None
        code = first.code()
        self.end()
        said = {first.last_words, ""}
        for worker in failed:
            if worker.last_words not in said and not worker.is_widowed:
                said.add(worker.last_words)
                worker.tell()
        return Ending(USER_MISTAKE if code == USER_MISTAKE else FAILURE, self._because(first, code))

    def _may_have_failed(self, worker: Worker) -> bool:
        code = worker.code()
        return worker.last_words != "" if code is None else not self._is_orderly(code)

    def _because(self, worker: Worker, code: int | None) -> str:
        if code == USER_MISTAKE and worker.last_words:
            return worker.last_words
        others = "; the other workers were stopped" if self._job.processes * self._job.nodes > 1 else ""
        if worker.last_words:
            return f"[rank {worker.rank}] {worker.last_words}{others}"
        if code is not None and code < 0:
            memory = " (out of memory?)" if code == -signal.SIGKILL else ""
            name = next((each.name for each in signal.Signals if each == -code), f"signal {-code}")
            how = f"was killed by {name}{memory}{others}"
            return f"rank {worker.rank} {how}; {self._job.advice}"
        return f"rank {worker.rank} ended with exit code {code}{others}"


class Since:
    """A stopwatch that starts when it is first read."""

    def __init__(self, clock: Callable[[], float] = monotonic):
        self._clock = clock
        self._begin: float | None = None

    def seconds(self) -> float:
        """Seconds since the first call."""
        now = self._clock()
        if self._begin is None:
            self._begin = now
        return now - self._begin


def show(line: str) -> None:
    """Print a line to standard error as soon as it is there; workers go on where nobody hears it."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
