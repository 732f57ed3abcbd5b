"""One worker process of this node: its output, its last message and its exit code."""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from threading import Thread
from time import monotonic
from typing import IO

from seektune.launch import die_with_parent

MESSAGE_PREFIX = "seektune: "
"""Begins the line with which a worker reports why it exits (`seektune.cli.errors`)."""
PEER_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "connection refused",
    "remote process",
)
"""Phrases in the message of a worker that fails only because another worker is gone."""
REAP_TIMEOUT = 5.0
"""Seconds to wait for a killed process; a driver in the kernel may hold it longer."""
OUTPUT_TIMEOUT = 1.0
"""Seconds to wait for the rest of its output; a child process may hold the pipe open."""

PrintLine = Callable[[str], None]


class Worker:
    """A worker, started by the constructor.

    Rank 0 prints as if it ran alone; of the other ranks only standard error is printed, with a rank prefix. A line that
    begins with MESSAGE_PREFIX is held back as `last_message`. The worker has its own session, so that Ctrl-C at a
    terminal reaches it only through the launcher.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        rank: int,
        print_line: PrintLine,
        interactive: bool = False,
    ):
        """Start it; `interactive` lets it read the launcher's standard input."""
        self.rank = rank
        self.last_message = ""
        self._print_line = print_line
        self._message_time = monotonic()
        self._drained = False
        self._prefix = f"[rank {rank}] " if rank else ""
        command_line = [sys.executable, "-I", "-S", str(Path(die_with_parent.__file__)), str(os.getpid()), *command]
        stdout = DEVNULL if rank else None
        stdin = None if interactive else DEVNULL
        self._process = Popen(
            command_line, env=environment, stdin=stdin, stdout=stdout, stderr=PIPE, start_new_session=True
        )
        assert self._process.stderr is not None
        self._reader = Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process id, which is also its group's."""
        return self._process.pid

    @property
    def message_time(self) -> float:
        """When `last_message` arrived, or standard error closed without one; comparable within this launcher."""
        return self._message_time

    @property
    def lost_peer(self) -> bool:
        """Whether it failed because another worker is gone."""
        return any(phrase in self.last_message.lower() for phrase in PEER_LOST)

    def code(self) -> int | None:
        """The exit code, the negative number of the signal that killed it, or None while it runs."""
        code = self._process.poll()
        if code is not None and not self._drained:
            self._drained = True
            self._reader.join(OUTPUT_TIMEOUT)  # the rest of its output is in the pipe
        return code

    def send(self, number: int) -> None:
        """Send a signal, if it runs."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it and its children; does not wait."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait for its exit and the end of its output."""
        with suppress(TimeoutExpired):
            self._process.wait(REAP_TIMEOUT)
        self.code()

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            text = line.decode(errors="replace").rstrip("\r\n")
            if text.startswith(MESSAGE_PREFIX):
                self.print_message()
                self.last_message = text.removeprefix(MESSAGE_PREFIX)
                self._message_time = monotonic()
            else:
                self._print_line(f"{self._prefix}{text}")
        if not self.last_message:
            self._message_time = monotonic()

    def print_message(self) -> None:
        """Print the message that was held back."""
        if self.last_message:
            self._print_line(f"[rank {self.rank}] {MESSAGE_PREFIX}{self.last_message}")
            self.last_message = ""
