"""One worker process of this node: its output, its last words and its end."""

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

SPEAKER = "seektune: "
"""Opens the line with which a worker takes its leave (`seektune.cli.errors`)."""
LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "connection refused", "remote process")
"""Words of a worker that fails only because another one is gone."""
REAPING = 5.0
"""Seconds until a killed process is left to the kernel, which may hold it in a driver."""
LISTENING = 1.0
"""Seconds for the rest of its output; a process that it started may hold the pipe open."""

Show = Callable[[str], None]


class Worker:
    """Started at once. Rank 0 prints as if it ran alone; of the others, only standard error is shown, with their rank.

    A line that opens with SPEAKER is held back: `last_words`. It has its own session, so that a terminal's Ctrl-C
    reaches it only through the launcher.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], rank: int, show: Show):
        self.rank = rank
        self.last_words = ""
        self._show = show
        self._spoke = monotonic()
        self._heard = False
        self._prefix = f"[rank {rank}] " if rank else ""
        command_line = [sys.executable, "-I", "-S", str(Path(die_with_parent.__file__)), str(os.getpid()), *command]
        stdout = DEVNULL if rank else None
        self._process = Popen(
            command_line, env=environment, stdin=DEVNULL, stdout=stdout, stderr=PIPE, start_new_session=True
        )
        assert self._process.stderr is not None
        self._listener = Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """The process id, which is also its group's."""
        return self._process.pid

    @property
    def when(self) -> float:
        """When it said its last words, or went without any; for comparing with others of this launcher."""
        return self._spoke

    @property
    def is_widowed(self) -> bool:
        """Whether it complains about another worker's end."""
        return any(words in self.last_words.lower() for words in LOST)

    def code(self) -> int | None:
        """Its exit code, minus the number of the signal that killed it, or None while it lives."""
        code = self._process.poll()
        if code is not None and not self._heard:
            self._heard = True
            self._listener.join(LISTENING)  # what it said lies in the pipe
        return code

    def send(self, number: int) -> None:
        """Send it a signal, if it lives."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it and what it started, at once; does not wait."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def bury(self) -> None:
        """Wait for its end and the end of its output."""
        with suppress(TimeoutExpired):
            self._process.wait(REAPING)
        self.code()

    def _listen(self, stream: IO[bytes]) -> None:
        for line in stream:
            text = line.decode(errors="replace").rstrip("\r\n")
            if text.startswith(SPEAKER):
                self.tell()
                self.last_words = text.removeprefix(SPEAKER)
                self._spoke = monotonic()
            else:
                self._show(f"{self._prefix}{text}")
        if not self.last_words:
            self._spoke = monotonic()

    def tell(self) -> None:
        """Show the words that were held back."""
        if self.last_words:
            self._show(f"[rank {self.rank}] {SPEAKER}{self.last_words}")
            self.last_words = ""
