"""A real run that waits where a test wants to disturb it."""

import os
import time
from pathlib import Path
from typing import Protocol

from tests.patience import HUNG
from tests.run_cli import ROOT


class Process(Protocol):
    """What is needed of `subprocess.Popen`."""

    def poll(self) -> int | None: ...
    def communicate(self) -> tuple[str, str]: ...


def hold(rank: int | str, step: int, file: Path) -> dict[str, str]:
    """Environment in which `rank` waits before `step` for a signal, once it has made `file`."""
    return {"PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), str(ROOT))), "HELD_RUN": f"{rank} {step} {file}"}


def hold_rows(rank: int | str, file: Path) -> dict[str, str]:
    """Environment in which a rank, or both for `all`, wait before they read rows, once each has made `FILE-RANK`."""
    return hold(rank, 0, file)


def wait_until_held(process: Process, file: Path) -> None:
    """Until the rank waits."""
    deadline = time.monotonic() + HUNG
    while not file.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
