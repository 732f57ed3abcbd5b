"""The run folder: its name and lock; removed again if the run does not start."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path

from seektune.io.run_files import CONTENTS, RECIPE, REPORT, STUCK
from seektune.paths import refuse_no_folder, user_path

RUNS = Path("runs")
TAKEN = (RECIPE, REPORT, STUCK, *(name for name in CONTENTS if name != RECIPE))
"""Whoever holds one of these is the folder of another run, which would lose it."""


def choose_folder(run_dir: str | None, name: str, now: datetime) -> Path:
    """The folder that the recipe names, or `runs/<name>-<date>-<time>`.

    Raises:
        ValueError: it is no folder.
    """
    if run_dir is None:
        stem = f"{name}-{now:%Y%m%d-%H%M%S}"
        numbered = (RUNS / (stem if number == 1 else f"{stem}-{number}") for number in count(1))
        return next(folder for folder in numbered if not folder.exists())
    folder = user_path(run_dir)
    try:
        refuse_no_folder(folder)
    except ValueError as error:
        raise ValueError(f"run_dir {error}, or null for a new one in {RUNS}/") from None
    return folder


def taken(folder: Path) -> str | None:
    """The file that shows that a folder holds a run, or None."""
    return next((found for found in TAKEN if (folder / found).exists()), None)


def refuse_taken(folder: Path) -> None:
    """Check that a folder holds no run.

    Raises:
        ValueError: it does.
    """
    if (found := taken(folder)) is not None:
        raise ValueError(
            f"run_dir {folder} already holds a run ({found}); name another folder, move this one away, "
            f"or leave run_dir out for a new one in {RUNS}/"
        )


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Create and lock the folder for this process; remove it if the block fails and has written nothing into it.

    Raises:
        ValueError: another process holds it.
        OSError: it cannot be made.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder, f"run_dir {folder}: another process trains there; let it finish, or name another"):
            yield
    except BaseException:
        # a folder that something was put into is not empty and stays
        with suppress(OSError):
            for place in missing:
                place.rmdir()
        raise


@contextmanager
def locked(folder: Path, refusal: str) -> Iterator[None]:
    """Lock the folder; the system releases the lock when the process ends in any way.

    Raises:
        ValueError: another process has locked it; the message is `refusal`.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(refusal) from None
    except OSError:
        # a network disk without locks: better unguarded than not at all
        pass
    try:
        yield
    finally:
        os.close(descriptor)
