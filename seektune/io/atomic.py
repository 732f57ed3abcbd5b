"""Atomic writes: files that are written whole or not at all, and appends that are whole or not at all."""

import fcntl
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from secrets import token_hex

from seektune.paths import refuse_dangling

SCRATCH = ".partial"
"""Suffix of what is not complete yet."""
TOKEN = "[0-9a-f]" * 8
"""Pattern of what stands before the suffix in a name."""


def refuse_existing(file: Path) -> None:
    """Check that a user's output can be written without loss: every command that writes a file calls this first.

    A device or a pipe may be written to.

    Raises:
        ValueError: the file exists, is a folder, or lies in a folder that does not exist.
    """
    refuse_dangling(file)
    if file.is_dir():
        raise ValueError(f"{file} is a folder; name a new file")
    if file.is_file():
        raise ValueError(f"{file} exists already; name a new file, or remove this one first")
    if not file.parent.is_dir():
        raise ValueError(f"{file}: there is no folder {file.parent}; make it first, or name another file")


@contextmanager
def replacing(path: Path) -> Iterator[FileIO]:
    """An unbuffered file that is renamed to `path`, replacing an older one, when the block ends without an error.

    After an error nothing is left of it, and an older file stays as it was. What killed processes left unfinished of
    the same file is removed.

    Raises:
        OSError: it could not be written.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.{TOKEN}{SCRATCH}"):
        _remove_dead(left)
    scratch = path.with_name(f".{path.name}.{token_hex(4)}{SCRATCH}")
    try:
        with scratch.open("xb", buffering=0) as file:
            with suppress(OSError):  # a file system without locks, where no process is assumed dead
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _remove_dead(scratch: Path) -> None:
    """Remove an unfinished file unless its writer, which holds a lock on it, still runs."""
    with suppress(OSError), scratch.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        scratch.unlink()


def write_atomically(path: Path, text: str | bytes) -> None:
    """Write a file that appears under its name only when it is complete; it replaces an older one.

    Raises:
        OSError: it could not be written; nothing is left behind.
    """
    data = text.encode() if isinstance(text, str) else text
    try:
        if path.exists() and not path.is_file():  # a device or a pipe is written to, not replaced
            path.write_bytes(data)
            return
        with replacing(path) as file:
            write_all(file, data, path)
    except OSError as error:
        raise cannot_write(path, error) from error


class AtomicAppender:
    """A file opened for appending: each write is flushed to disk, whole or not at all.

    Raises:
        OSError: a piece could not be written; the pieces before it stay.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Append bytes."""
        end = self._file.tell()
        try:
            write_all(self._file, data, self.path)
        except OSError as error:
            self._file.truncate(end)
            raise cannot_write(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def write_all(file: FileIO, data: bytes | memoryview, path: Path) -> None:
    """Write all of it to an unbuffered file: the system takes at most 2 GB at once, and less where the disk is full.

    Raises:
        OSError: that failed; its `filename` is `path`, the name that the file has or will get.
    """
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, on disk before continuing."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> OSError:
    """The error with a message that says what to do."""
    reason = error.strerror or str(error)
    return OSError(f"could not write {path}: {reason}; what the run had written before stays in {path.parent}")
