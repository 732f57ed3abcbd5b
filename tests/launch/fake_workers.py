"""Fake workers for launcher tests: a script of a few lines on each rank."""

import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import psutil

from seektune.launch import worker_group
from seektune.launch.job import ExitStatus, JobEnded, LaunchConfig
from seektune.launch.local import launch
from tests.patience import HUNG
from tests.places import ROOT

OPENING = """
import fcntl, os, signal, sys, termios, time
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
def leave(code, words=""):
    if words: print("seektune:", words, file=sys.stderr)
    sys.exit(code)
def mark(name, content="-"):
    os.symlink(content, os.path.join(os.environ["FOLDER"], name))
def wait_for(name):
    while not os.path.lexists(path := os.path.join(os.environ["FOLDER"], name)): time.sleep(0.01)
    return os.readlink(path)
def wait_until_read():
    "until the launcher has read all that this worker printed"
    sys.stderr.flush()
    while fcntl.ioctl(2, termios.FIONREAD, bytes(4)) != bytes(4): time.sleep(0.01)
def wait_for_end(other):
    "until the launcher has seen the end of another worker, which marked pid-RANK"
    pid = int(wait_for(f"pid-{other}"))
    while True:
        try: os.kill(pid, 0)
        except ProcessLookupError: return
        time.sleep(0.01)
"""


def standin(body: str, processes: int, torch: bool = False, folder: Path | None = None, **changes) -> LaunchConfig:
    """A job whose workers run `body` after OPENING; in `folder` they leave marks for each other."""
    quick = () if torch else ("-I", "-S")
    environment = {**os.environ, "FOLDER": str(folder)}
    return LaunchConfig((sys.executable, *quick, "-c", OPENING + body), environment, processes, **changes)


def ending(job: LaunchConfig) -> ExitStatus:
    """Run a job; returns its exit status."""
    try:
        launch(job)
    except JobEnded as ended:
        return ended.status
    return ExitStatus()


def launcher(body: str, processes: int, **changes) -> subprocess.Popen[str]:
    """A launcher in another process, which prints the exit code and message."""
    command = [sys.executable, "-m", "tests.launch.fake_workers", body, str(processes), repr(changes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


SLEEPS = "time.sleep(300); leave(1, 'nobody ended this worker')"
"""A worker that only ends if it is ended."""


def ready(folder: Path) -> str:
    """A line of code by which a worker reports that it runs."""
    return f"open({str(folder)!r} + f'/ready-{{os.getpid()}}', 'w').close()\n"


def when_ready(folder: Path, count: int) -> list[int]:
    """Wait until `count` workers run; returns their process ids."""
    deadline = time.monotonic() + HUNG
    while len(found := list(folder.glob("ready-*"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [int(place.name.removeprefix("ready-")) for place in found]


def signal_when_ready(folder: Path, count: int, number: int) -> None:
    """Signal this process, which is a launcher by then, when `count` workers run."""

    def wait() -> None:
        when_ready(folder, count)
        os.kill(os.getpid(), number)

    Thread(target=wait, daemon=True).start()


def are_gone(pids: list[int]) -> bool:
    """Whether none of these processes is alive after a few seconds."""
    deadline = time.monotonic() + HUNG
    while any(_lives(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(_lives(pid) for pid in pids)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    body, processes, changes = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
    worker_group.ROOT_CAUSE_WAIT = HUNG
    how = ending(standin(body, processes, **changes))
    print(how.code, how.message, flush=True)
