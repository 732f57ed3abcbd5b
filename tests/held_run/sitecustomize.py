"""Lets a process of a real run wait at a step until a signal comes.

Python runs this file where PYTHONPATH names its folder. HELD_RUN is "RANK STEP FILE": before that step that rank makes
the file and waits; a process that finds the file does not. For step 0 that rank, or each of two for `all`, makes
FILE-RANK before it reads rows, and waits.
"""

import os
import signal
import sys
import time
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TRAINER = "seektune.train.trainer"
DATA = "seektune.run.data"


class Finder(MetaPathFinder):
    """Changes the trainer or the reading of rows when its module is imported."""

    def __init__(self, module: str):
        self._module = module

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name != self._module:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def changed(module: Any) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = changed
        return spec


def change(module: Any) -> None:
    """Let what the test wants to disturb wait."""
    if module.__name__ == TRAINER:
        hold_step(module.Trainer)
    else:
        hold_rows(module)


def hold_rows(module: Any) -> None:
    """Let the reading of rows wait."""
    held_rank, _, file = os.environ["HELD_RUN"].split(" ", 2)
    rank = os.environ.get("RANK")  # the launcher has none
    if rank not in (held_rank, *("01" if held_rank == "all" else "")):
        return

    def held(*_: Any, **__: Any) -> None:
        Path(f"{file}-{rank}").touch()
        while True:
            signal.pause()

    module.prepare_dataset = held


def hold_step(trainer: Any) -> None:
    """Let its steps wait."""
    rank, step, file = os.environ["HELD_RUN"].split(" ", 2)
    take_step = trainer._step

    def held(self: Any, *given: Any) -> None:
        if (self.model.mesh.rank, self.step + 1) == (int(rank), int(step)) and not Path(file).exists():
            Path(file).touch()
            while self.interruption.name is None:
                time.sleep(0.01)
        take_step(self, *given)

    trainer._step = held


if "HELD_RUN" in os.environ:
    wanted = DATA if os.environ["HELD_RUN"].split(" ")[1] == "0" else TRAINER
    if wanted in sys.modules:  # in a process that is forked
        change(sys.modules[wanted])
    else:
        sys.meta_path.insert(0, Finder(wanted))
