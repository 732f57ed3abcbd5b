"""The workers of this node as a group: forwards signals, stops all when one fails, and reports the first failure."""

import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic

from seektune.exit_codes import FAILURE, RESUME_ME, USER_MISTAKE
from seektune.launch.job import CLEAN_EXITS, ExitStatus, LaunchConfig, stopped_while_starting
from seektune.launch.worker import Worker

ROOT_CAUSE_WAIT = 3.0
"""Seconds to wait for the message of the worker that failed first, after others report that they lost it."""


class LocalWorkerGroup:
    """Watches workers that were started."""

    def __init__(self, workers: Sequence[Worker], job: LaunchConfig):
        self._workers = workers
        self._job = job
        self._signal: signal.Signals | None = None
        self._stopping = Stopwatch()
        self._failing = Stopwatch()

    def forward(self, request: signal.Signals) -> bool:
        """Send workers a signal that asks them to save and exit; False if one was sent before."""
        if self._signal is not None:
            return False
        self._signal = request
        for worker in self._workers:
            worker.send(request)
        return True

    def kill(self) -> None:
        """Kill all workers; does not wait."""
        for worker in self._workers:
            worker.kill()

    def kill_and_wait(self) -> None:
        """Kill all workers and wait until they are gone."""
        self.kill()
        for worker in self._workers:
            worker.wait()

    def poll(self) -> ExitStatus | None:
        """How the workers exited; None while they run. After a failure all have been killed."""
        codes = [worker.code() for worker in self._workers]
        if any(code is not None and not self._is_clean(code) for code in codes):
            return self._failure()
        if None not in codes:
            return self._clean_exit(codes)
        if self._signal is not None or RESUME_ME in codes:
            return self._grace_exceeded()
        return None

    def _is_clean(self, code: int) -> bool:
        """Whether an exit is not a failure; the forwarded signal itself kills a worker that is not training yet."""
        return code in CLEAN_EXITS or code == -(self._signal or 0)

    def _clean_exit(self, codes: Sequence[int | None]) -> ExitStatus:
        for worker in self._workers:
            worker.wait()
        if not any(codes):
            for worker in self._workers:
                worker.print_message()
            return ExitStatus()
        messages = [worker.last_message for worker in self._workers if worker.last_message]
        if not messages and self._signal is not None:
            return stopped_while_starting(self._signal)
        return ExitStatus(RESUME_ME, messages[0] if messages else f"stopped; {self._job.advice}")

    def _grace_exceeded(self) -> ExitStatus | None:
        if self._stopping.seconds() < self._job.grace:
            return None
        late = [str(worker.rank) for worker in self._workers if worker.code() is None]
        self.kill_and_wait()
        ranks = f"rank{'s' if len(late) > 1 else ''} {', '.join(late)}"
        return ExitStatus(
            FAILURE, f"{ranks} did not stop within {self._job.grace:g} s (--shutdown-timeout); {self._job.advice}"
        )

    def _failure(self) -> ExitStatus | None:
        """The first failure; None while it is not yet known which one that is."""
        failed = [worker for worker in self._workers if self._may_have_failed(worker)]
        first = min(failed, key=lambda worker: (worker.lost_peer, worker.message_time))
        unclear = first.lost_peer or first.code() is None
        if unclear and self._failing.seconds() < ROOT_CAUSE_WAIT:
            return None
        code = first.code()
        self.kill_and_wait()
        printed = {first.last_message, ""}
        for worker in failed:
            if worker.last_message not in printed and not worker.lost_peer:
                printed.add(worker.last_message)
                worker.print_message()
        return ExitStatus(USER_MISTAKE if code == USER_MISTAKE else FAILURE, self._describe(first, code))

    def _may_have_failed(self, worker: Worker) -> bool:
        code = worker.code()
        return worker.last_message != "" if code is None else not self._is_clean(code)

    def _describe(self, worker: Worker, code: int | None) -> str:
        if code == USER_MISTAKE and worker.last_message:
            return worker.last_message
        others = "; the other workers were stopped" if self._job.processes * self._job.nodes > 1 else ""
        if worker.last_message:
            return f"[rank {worker.rank}] {worker.last_message}{others}"
        if code is not None and code < 0:
            memory = " (out of memory?)" if code == -signal.SIGKILL else ""
            name = next((each.name for each in signal.Signals if each == -code), f"signal {-code}")
            how = f"was killed by {name}{memory}{others}"
            return f"rank {worker.rank} {how}; {self._job.advice}"
        return f"rank {worker.rank} ended with exit code {code}{others}"


class Stopwatch:
    """Measures the time since it was first read."""

    def __init__(self, clock: Callable[[], float] = monotonic):
        self._clock = clock
        self._begin: float | None = None

    def seconds(self) -> float:
        """Seconds since the first call."""
        now = self._clock()
        if self._begin is None:
            self._begin = now
        return now - self._begin


def print_line(line: str) -> None:
    """Print a line to standard error and flush it; a closed standard error is ignored."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
