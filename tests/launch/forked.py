"""Jobs of several processes of which launcher and workers are forked instead of started as new interpreters."""

import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import NoReturn

from seektune.__main__ import main
from seektune.launch import worker
from seektune.launch.die_with_parent import PR_SET_PDEATHSIG
from tests import held_run
from tests.forks import FORKS
from tests.patience import HUNG
from tests.run_cli import CODE, execute, open_standard_streams

HOLD = Path(held_run.__file__).parent / "sitecustomize.py"
"""What a new interpreter runs by itself."""


class ForkedWorker:
    """What a launcher needs of `subprocess.Popen`, for a worker that is a fork of it."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        stdin: int | None,
        stdout: int | None,
        stderr: int,
        start_new_session: bool,
    ):
        assert (stderr, start_new_session) == (subprocess.PIPE, True)
        read, write = os.pipe()
        launcher = os.getpid()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _work(command, env, launcher, {0: stdin, 1: stdout, 2: write})
        os.close(write)
        self.stderr = os.fdopen(read, "rb")
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float) -> None:
        """Wait for its exit."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(0.01)

    def send_signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def _work(command: Sequence[str], env: Mapping[str, str], launcher: int, streams: Mapping[int, int | None]) -> NoReturn:
    """In a worker: what the command does in an interpreter that the launcher starts."""
    code: object = 1
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        assert os.getppid() == launcher
        for descriptor, given in streams.items():
            if given is not None:
                os.dup2(os.open(os.devnull, os.O_RDWR) if given == subprocess.DEVNULL else given, descriptor)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        open_standard_streams()
        os.environ.clear()
        os.environ.update(env)
        if "HELD_RUN" in env:
            runpy.run_path(str(HOLD))
        sys.argv = ["seektune", *command[command.index("seektune") + 1 :]]
        main()
    except SystemExit as left:
        code = left.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 1)


def _launch(*given: object) -> None:
    worker.Popen = ForkedWorker  # type: ignore[misc]
    execute(*given)  # type: ignore[arg-type]


@contextmanager
def accept_jobs(place: Path) -> Iterator[None]:
    """Fork a job for each `fork_client.py` that connects to the socket of this name."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        Thread(target=_accept, args=(listener,), daemon=True).start()
        yield


def _accept(listener: socket.socket) -> None:
    with suppress(OSError):  # the socket is closed
        while True:
            Thread(target=_serve, args=(listener.accept()[0],), daemon=True).start()


def _serve(connection: socket.socket) -> None:
    with connection, connection.makefile("rw") as stream:
        words, cwd, environment, (out, error) = json.loads(stream.readline())
        given = words[words.index("seektune") + 1 :]
        with ForkedJob(CODE, given, Path(cwd), environment, printed=(Path(out), Path(error))) as job:
            print(job.pid, file=stream, flush=True)
            job.communicate()
            code = job.poll() or 0
        print(code if code >= 0 else 128 - code, file=stream, flush=True)


class ForkedJob:
    """A command line with what tests need of `subprocess.Popen`; what it prints goes to files."""

    def __init__(
        self,
        code: str,
        words: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        folder: Path | None = None,
        printed: Sequence[Path] = (),
    ):
        """`printed` names the files of standard output and error; else they are new ones in a folder."""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            printed = [folder / f"{name}-{time.monotonic_ns()}" for name in ("out", "error")]
        self._printed = printed
        self._process = FORKS.Process(target=_launch, args=(code, tuple(words), cwd, dict(environment), *self._printed))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def __enter__(self) -> "ForkedJob":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.join()

    @property
    def returncode(self) -> int | None:
        """As `poll`."""
        return self.poll()

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.exitcode

    def wait_for(self, text: str, error: bool = False) -> str:
        """Wait until a text is on standard output or, if asked for, on standard error; what was printed there."""
        deadline = time.monotonic() + HUNG
        while text not in (printed := self._read(error)):
            assert self.poll() is None, (self._read(False), self._read(True))
            assert time.monotonic() < deadline, "the job hangs"
            time.sleep(0.02)
        return printed

    def _read(self, error: bool) -> str:
        file = self._printed[error]
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the exit; what was printed."""
        self._process.join(timeout)
        assert self.poll() is not None, "the job hangs"
        return self._read(False), self._read(True)

    def send_signal(self, number: int) -> None:
        """Send a signal to the launcher."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the launcher, and with it its workers."""
        self._process.kill()
