"""Folders that are written under a temporary name and renamed once they are complete."""

import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from seektune.io.atomic import SCRATCH, flush
from seektune.paths import refuse_no_folder

OLD = ".old"
"""Suffix of a folder that is being replaced."""
CARD = "README.md"
"""The model card: people edit it, so a replaced folder's is kept."""


@contextmanager
def complete_folder(final: Path, replace: bool = False) -> Iterator[Path]:
    """A scratch folder next to `final`: renamed to `final` when the block succeeds, removed when it fails.

    With `replace`, an existing folder of that name is replaced at that moment, but its README.md is kept. Links are
    followed. Scratch folders of `final` that killed processes left behind are removed first.

    Raises:
        ValueError: `final` is a folder that is not empty, and `replace` is False; it or a folder above it is a file, or
            a link that leads nowhere.
    """
    linked_into_folder = final.is_symlink() and final.resolve().parent.is_dir()
    refuse_no_folder(final.parent if linked_into_folder else final)
    final = final.resolve()
    if not replace and final.exists() and any(final.iterdir()):
        raise ValueError(f"{final} already exists and is not empty; choose another folder or remove it first")
    final.parent.mkdir(parents=True, exist_ok=True)
    for left in final.parent.glob(f".{glob.escape(final.name)}.*{SCRATCH}"):
        _remove_dead(left)
    scratch = final.with_name(f".{final.name}.{token_hex(4)}{SCRATCH}")
    scratch.mkdir()
    lock = _lock(scratch)
    try:
        yield scratch
        if replace:
            _keep_model_card(final, scratch)
        for file in scratch.rglob("*"):
            flush(file)
        if replace and final.exists():
            # left by a process that was killed after the second rename
            shutil.rmtree(_old_path(final), ignore_errors=True)
            os.rename(final, _old_path(final))
        os.rename(scratch, final)
        flush(final.parent)
        shutil.rmtree(_old_path(final), ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder until the descriptor is closed or the process ends; None if another process holds the lock."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # also on a file system without locks: then no process is assumed dead
        os.close(descriptor)
        return None
    return descriptor


def _remove_dead(scratch: Path) -> None:
    with suppress(OSError):
        lock = _lock(scratch)
        if lock is not None:
            shutil.rmtree(scratch, ignore_errors=True)
            os.close(lock)


def clean_up_partial(parent: Path, name: str = "*") -> None:
    """Clean up after killed processes in a folder that no other process writes to.

    Unfinished folders are removed. A folder that was moved aside, but never replaced, gets its name back. Only folders
    whose final name matches `name` are touched.
    """
    for old in parent.glob(f".{name}{OLD}"):
        final = parent / old.name.removeprefix(".").removesuffix(OLD)
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, final)
    for scratch in parent.glob(f".{name}.*{SCRATCH}"):
        shutil.rmtree(scratch, ignore_errors=True)


def _keep_model_card(old: Path, new: Path) -> None:
    if (old / CARD).is_file() and not (new / CARD).exists():
        shutil.copy2(old / CARD, new / CARD)


def _old_path(final: Path) -> Path:
    return final.with_name(f".{final.name}{OLD}")
