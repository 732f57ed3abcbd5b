"""The folder of a run: its name, and that nothing of it stays when the run never began."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path

RUNS = Path("runs")
RECIPE, EXAMS = "recipe.yaml", "evaluation.json"
"""Names in the run folder."""
TAKEN = (RECIPE, EXAMS, "metrics.jsonl", "model", "adapter", "checkpoints", "report.html")
"""Whoever holds one of these is the folder of another run."""


def choose_folder(run_dir: str | None, name: str, now: datetime) -> Path:
    """The folder that the recipe names, or `runs/<name>-<date>-<time>`.

    Raises:
        ValueError: it is no folder.
    """
    if run_dir is None:
        stem = f"{name}-{now:%Y%m%d-%H%M%S}"
        numbered = (RUNS / (stem if number == 1 else f"{stem}-{number}") for number in count(1))
        return next(folder for folder in numbered if not folder.exists())
    folder = Path(run_dir).expanduser()
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"run_dir {folder}: {place} is a file; name a folder, or none for a new one in {RUNS}/")
    return folder


def taken(folder: Path) -> str | None:
    """What shows that a folder holds a run, if anything does."""
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
def made(folder: Path) -> Iterator[None]:
    """Make the folder for the preparations of the block, which write nothing into it; take it back if they fail.

    Raises:
        OSError: the folder cannot be made.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        # a folder that someone else has put something into in the meantime is not empty and stays
        with suppress(OSError):
            for place in missing:
                place.rmdir()
        raise
