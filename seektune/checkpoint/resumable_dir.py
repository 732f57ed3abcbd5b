"""A folder that is written by one process at a time and resumed after an interruption."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from seektune.checkpoint.atomic_dir import flush

RECORD = "conversion.json"
"""The conversion's plan and the result of each shard; it stays next to the converted weights."""
LOCK = "lock"
PARTIAL = ".partial"
"""Suffix of incomplete files."""

Record = dict[str, Any]
"""`plan`, `shards` (size and export report of each finished shard, by name) and `complete`."""


@dataclass(frozen=True)
class ResumableDir:
    """A working folder next to the final one, locked by this process."""

    folder: Path
    final: Path
    record: Record

    def save_record(self) -> None:
        """Write the record to disk."""
        scratch = self.folder / f"{RECORD}{PARTIAL}"
        with scratch.open("w", encoding="utf-8") as file:
            file.write(json.dumps(self.record, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, self.folder / RECORD)

    def publish(self) -> None:
        """Mark the record complete and rename the folder to its final name."""
        self.record["complete"] = True
        self.save_record()
        (self.folder / LOCK).unlink()
        for file in (*self.folder.iterdir(), self.folder):
            flush(file)
        os.replace(self.folder, self.final)
        flush(self.final.parent)


@contextmanager
def resumable_dir(final: Path, plan: Record) -> Iterator[ResumableDir]:
    """The working folder of `final`: new, or left by an interrupted call with the same plan.

    When the block fails, finished shards are kept; without any, the folder is removed.

    Raises:
        ValueError: another call is writing `final`, or the working folder holds something else.
        OSError: the folder cannot be created.
    """
    folder = final.with_name(f".{final.name}.converting")
    if folder.exists() and not _is_ours(folder):
        raise ValueError(f"{folder} exists and is not an unfinished conversion; move it or choose another destination")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / LOCK, final):
        record = read_record(folder)
        if record is not None and record["plan"] != plan:
            raise ValueError(f"{folder} holds an unfinished conversion with other options; remove it to start over")
        here = ResumableDir(folder, final, record or {"plan": plan, "shards": {}, "complete": False})
        for file in folder.glob(f"*{PARTIAL}"):
            file.unlink()
        try:
            here.save_record()
            yield here
        finally:
            if not here.record["shards"]:
                shutil.rmtree(folder, ignore_errors=True)


def read_record(folder: Path) -> Record | None:
    """The record of a working folder or of a finished one; None if there is no valid record."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and {"plan", "shards", "complete"} <= record.keys()
    return record if whole and _valid_shards(record["shards"]) else None


def _valid_shards(shards: Any) -> bool:
    keys = {"bytes", "copied", "converted", "inexact"}
    return isinstance(shards, dict) and all(isinstance(each, dict) and keys <= each.keys() for each in shards.values())


def _is_ours(folder: Path) -> bool:
    """Whether the folder has a record, or only the files of a call that was killed before it wrote one."""
    if not folder.is_dir():
        return False
    return read_record(folder) is not None or {file.name for file in folder.iterdir()} <= {LOCK, f"{RECORD}{PARTIAL}"}


@contextmanager
def _locked(lock: Path, final: Path) -> Iterator[None]:
    """Hold the lock file; the operating system releases it when the process ends, even if it is killed."""
    busy = f"another process is writing {final}; wait until it has finished, or choose another destination"
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(busy) from None
        if not _still_named(lock, file):
            raise ValueError(busy)
        yield


def _still_named(lock: Path, file: TextIOWrapper) -> bool:
    """Whether the locked file is still the one at this path: a call that just finished has deleted it."""
    with suppress(FileNotFoundError):
        return os.path.samestat(lock.stat(), os.fstat(file.fileno()))
    return False
