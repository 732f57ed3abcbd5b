"""Folders that get their name only when they are complete."""

import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from seektune.io.atomic import SCRATCH, flush

OLD = ".old"
"""Suffix of a folder that is being replaced."""
CARD = "README.md"
"""The one file of a replaced folder that people write themselves."""


@contextmanager
def complete_folder(final: Path, replace: bool = False) -> Iterator[Path]:
    """A scratch folder beside `final` that is renamed to it when the block ends well, and removed when it does not.

    With `replace`, an older folder of that name makes way at that moment; its README.md comes along. Links
    are followed. What killed processes left of the same work goes first.

    Raises:
        ValueError: `final` exists and is not an empty folder, and is not to be replaced.
    """
    final = final.resolve()
    if not replace and final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise ValueError(f"{final} already exists and is not empty; choose another folder or remove it first")
    final.parent.mkdir(parents=True, exist_ok=True)
    for left in final.parent.glob(f".{glob.escape(final.name)}.*{SCRATCH}"):
        _remove_dead(left)
    scratch = final.with_name(f".{final.name}.{token_hex(4)}{SCRATCH}")
    scratch.mkdir()
    held = _take(scratch)
    try:
        yield scratch
        if replace:
            _bring_card(final, scratch)
        for file in scratch.rglob("*"):
            flush(file)
        if replace and final.exists():
            # a process that was killed after naming its folder
            shutil.rmtree(_aside(final), ignore_errors=True)
            os.rename(final, _aside(final))
        os.rename(scratch, final)
        flush(final.parent)
        shutil.rmtree(_aside(final), ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if held is not None:
            os.close(held)


def _take(folder: Path) -> int | None:
    """A hold on a folder until it is closed or the process ends, however that is; None if another process has one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # also where a file system knows no holds: then nobody is taken for dead
        os.close(descriptor)
        return None
    return descriptor


def _remove_dead(scratch: Path) -> None:
    with suppress(OSError):
        held = _take(scratch)
        if held is not None:
            shutil.rmtree(scratch, ignore_errors=True)
            os.close(held)


def sweep(parent: Path, name: str = "*") -> None:
    """Tidy up after killed processes in a folder that nobody else writes to: unfinished folders go, and one that was
    moved aside for a successor which never came gets its name back. Only those that were to be called `name`.
    """
    for old in parent.glob(f".{name}{OLD}"):
        final = parent / old.name.removeprefix(".").removesuffix(OLD)
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, final)
    for scratch in parent.glob(f".{name}.*{SCRATCH}"):
        shutil.rmtree(scratch, ignore_errors=True)


def _bring_card(old: Path, new: Path) -> None:
    if (old / CARD).is_file() and not (new / CARD).exists():
        shutil.copy2(old / CARD, new / CARD)


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}{OLD}")
