"""The checkpoints of a run: written asynchronously; the newest are kept, older ones removed by rule."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from seektune.checkpoint import Ranks, Shard, as_shard, write_train_state
from seektune.io.atomic import cannot_write
from seektune.io.atomic_dir import clean_up_partial
from seektune.train.config import CheckpointConfig

PREFIX = "step-"
LEFT = ".left"
"""Prefix of a checkpoint's name, and suffix of one that a rewound run has set aside."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is complete on disk."""

    folder: Path
    size: int
    """Bytes."""
    blocked: float
    """Seconds that training waited."""
    seconds: float
    """Seconds until it was complete."""


class Checkpoints:
    """Saves checkpoints to a folder. Training waits only while tensors are copied; a thread writes the copy.

    The copy's memory is kept for the next save. A save that fails beside the training leaves its `failure`; the next
    one, which training then waits for, makes up for it.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        report: Callable[[Saved], None],
        group: ProcessGroup | None = None,
    ):
        """With a process group (gloo, for this use only), each process saves its shards."""
        self.folder = folder
        self._config = config
        self._report = report
        self._copy: dict[str, Tensor] = {}
        self._thread: Thread | None = None
        self.failure: Exception | None = None
        """Why the last save failed, if it did."""
        self._current: list[Path] = []
        """Checkpoints that this process saved since its last rollback."""
        self._ranks = Ranks(group)
        self._ranks.first(lambda: clean_up_partial(folder))

    def place(self, step: int) -> Path:
        """Folder of the checkpoint after `step`."""
        return self.folder / f"{PREFIX}{step:06}"

    def went_back(self) -> None:
        """Note a rollback: later checkpoints will be written again under the same names."""
        self._current.clear()

    def save(
        self, step: int, tensors: Mapping[str, Tensor | Shard], facts: Mapping[str, Any], wait: bool = False
    ) -> None:
        """Save the state after `step`; returns when it is copied, or with `wait` when it is complete.

        Raises:
            OSError: it failed; earlier checkpoints are untouched.
        """
        began = perf_counter()
        self.settle()
        folder = self.place(step)
        if folder in self._current:
            return
        self._current.append(folder)
        if wait or not self._config.asynchronous or self.failure is not None:
            self._write(folder, tensors, facts, began, None)
            self.wait()
            return
        copy = self._copied(tensors)
        arguments = folder, copy, dict(facts), began, perf_counter() - began
        self._thread = Thread(target=self._write, args=arguments, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written.

        Raises:
            OSError: what was being written failed.
        """
        self.settle()
        if self.failure is not None:
            raise self.failure

    def settle(self) -> None:
        """Wait until nothing is being written, successfully or not."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _copied(self, tensors: Mapping[str, Tensor | Shard]) -> dict[str, Shard]:
        shards = {name: as_shard(held) for name, held in tensors.items()}
        for name, shard in shards.items():
            if name not in self._copy:
                self._copy[name] = torch.empty_like(shard.tensor, device="cpu", memory_format=torch.contiguous_format)
            self._copy[name].copy_(shard.tensor)
        return {name: replace(shard, tensor=self._copy[name]) for name, shard in shards.items()}

    def _write(
        self,
        folder: Path,
        tensors: Mapping[str, Tensor | Shard],
        facts: Mapping[str, Any],
        began: float,
        blocked: float | None,
    ) -> None:
        try:
            size = write_train_state(folder, tensors, facts, self._ranks.group)
            self._ranks.first(lambda: thin_out(self.folder, self._config.keep_last, self._config.keep_every))
        except Exception as error:
            # whatever it is: a thread that dies in silence would leave a checkpoint that is believed in
            self.failure = cannot_write(folder, error) if isinstance(error, OSError) else error
            self._current.remove(folder)
            return
        self.failure = None
        seconds = perf_counter() - began
        self._report(Saved(folder, size, seconds if blocked is None else blocked, seconds))


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = (place for place in folder.glob(f"{PREFIX}*") if step_of(place) is not None)
    return sorted(found, key=lambda place: step_of(place) or 0)


def step_of(folder: Path) -> int | None:
    """The step after which a checkpoint was made, from its name."""
    number = folder.name.removeprefix(PREFIX)
    return int(number) if number.isascii() and number.isdigit() and folder.name.startswith(PREFIX) else None


def set_aside_later(folder: Path, step: int) -> list[Path]:
    """Rename the checkpoints after `step`, to which a run is rewound; returns their new names.

    Returns:
        Where they are now, under names that no run starts from.
    """
    aside = []
    for place in complete_checkpoints(folder):
        if (step_of(place) or 0) > step:
            left = place.with_name(f"{place.name}{LEFT}")
            shutil.rmtree(left, ignore_errors=True)
            aside.append(place.rename(left))
    return aside


def thin_out(folder: Path, keep_last: int, keep_every: int | None) -> None:
    """Remove all but the last `keep_last` checkpoints and those whose step is a multiple of `keep_every`."""
    for place in complete_checkpoints(folder)[:-keep_last]:
        if keep_every is None or (step_of(place) or 0) % keep_every:
            # renamed first: a folder with its name is always whole
            doomed = place.with_name(f".{place.name}.doomed.partial")
            place.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
