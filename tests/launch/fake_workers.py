"""Fake workers for launcher tests: a script of a few lines on each rank."""

import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import psutil

from seektune.launch.job import ExitStatus, JobEnded, LaunchConfig
from seektune.launch.local import launch
from tests.places import ROOT

OPENING = """
import os, signal, sys, time
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
def leave(code, words=""):
    if words: print("seektune:", words, file=sys.stderr)
    sys.exit(code)
"""


def standin(body: str, processes: int, torch: bool = False, **changes) -> LaunchConfig:
    """A job whose workers run `body`, in which rank, attempt and leave(code, words) are defined."""
    quick = () if torch else ("-I", "-S")
    return LaunchConfig((sys.executable, *quick, "-c", OPENING + body), dict(os.environ), processes, **changes)


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


SLEEPS = "time.sleep(60)"


def ready(folder: Path) -> str:
    """A line of code by which a worker reports that it runs."""
    return f"open({str(folder)!r} + f'/ready-{{os.getpid()}}', 'w').close()\n"


def when_ready(folder: Path, count: int) -> list[int]:
    """Wait until `count` workers run; returns their process ids."""
    deadline = time.monotonic() + 25
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
    deadline = time.monotonic() + 3
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
    how = ending(standin(body, processes, **changes))
    print(how.code, how.message, flush=True)
