"""Folders that get their name only when they are complete."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete_folder(final: Path) -> Iterator[Path]:
    """A scratch folder beside `final` that is renamed to it when the block ends well, and removed when it does not.

    Raises:
        ValueError: `final` exists and is not an empty folder.
    """
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise ValueError(f"{final} already exists and is not empty; choose another folder or remove it first")
    final.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent))
    try:
        yield scratch
        scratch.chmod(0o777 & ~_umask())
        for file in scratch.rglob("*"):
            _flush(file)
        os.replace(scratch, final)
        _flush(final.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
