"""The folder in which a long piece of work grows: one process at a time, taken up again after an interruption."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from seektune.io.atomic import SCRATCH, flush
from seektune.io.json_file import read_json, write_json

RECORD = "conversion.json"
"""What the work is made from and what became of each part; it stays beside the result."""
LOCK = "lock"

Record = dict[str, Any]
"""`plan`, `shards` (what is known of each finished one, by name) and `complete`."""


@dataclass(frozen=True)
class ResumableDir:
    """A folder beside the final one, held by this process."""

    folder: Path
    final: Path
    record: Record

    def keep(self) -> None:
        """Put the record on disk."""
        write_json(self.folder / RECORD, self.record)

    def publish(self) -> None:
        """Declare the work complete and give the folder its final name."""
        self.record["complete"] = True
        self.keep()
        (self.folder / LOCK).unlink()
        for file in (*self.folder.iterdir(), self.folder):
            flush(file)
        os.replace(self.folder, self.final)
        flush(self.final.parent)


@contextmanager
def resumable_dir(final: Path, plan: Record) -> Iterator[ResumableDir]:
    """The workplace of `final`, new or left by an interrupted call with the same plan.

    When the block fails, finished parts stay; if there are none, nothing stays.

    Raises:
        ValueError: another call is at work there, or the workplace holds something else.
        OSError: it cannot be made.
    """
    folder = final.with_name(f".{final.name}.converting")
    if folder.exists() and not _is_ours(folder):
        raise ValueError(f"{folder} is in the way: it is no unfinished conversion; move it or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder / LOCK, final):
        record = read_record(folder)
        if record is not None and record["plan"] != plan:
            raise ValueError(f"{folder} holds an unfinished conversion of something else; remove it to start anew")
        here = ResumableDir(folder, final, record or {"plan": plan, "shards": {}, "complete": False})
        for file in folder.glob(f"*{SCRATCH}"):
            file.unlink()
        try:
            here.keep()
            yield here
        finally:
            if not here.record["shards"]:
                shutil.rmtree(folder, ignore_errors=True)


def read_record(folder: Path) -> Record | None:
    """The record of a workplace or of its result; None where there is none."""
    try:
        record = read_json(folder / RECORD)
    except (OSError, ValueError):
        return None
    whole = {"plan", "shards", "complete"} <= record.keys()
    return record if whole and _are_parts(record["shards"]) else None


def _are_parts(shards: Any) -> bool:
    keys = {"bytes", "copied", "converted", "inexact"}
    return isinstance(shards, dict) and all(isinstance(each, dict) and keys <= each.keys() for each in shards.values())


def _is_ours(folder: Path) -> bool:
    """Whether a record is there, or nothing but what a call leaves that was killed before it wrote one."""
    if not folder.is_dir():
        return False
    unfinished = {file.name for file in folder.glob(f".{RECORD}.*{SCRATCH}")}
    return read_record(folder) is not None or {file.name for file in folder.iterdir()} <= {LOCK, *unfinished}


@contextmanager
def _held(lock: Path, final: Path) -> Iterator[None]:
    """Hold the lock file; the system lets go of it when the process ends, however it ends."""
    busy = f"another call is writing {final} at this moment; let it finish, or choose another folder"
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(busy) from None
        if not _is_still(lock, file):
            raise ValueError(busy)
        yield


def _is_still(lock: Path, file: TextIOWrapper) -> bool:
    """Whether the held file still has its name: a call that ended just now has taken it away."""
    with suppress(FileNotFoundError):
        return os.path.samestat(lock.stat(), os.fstat(file.fileno()))
    return False
