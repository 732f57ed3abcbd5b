"""Files that others wrote: opened only if they are regular, as a pipe would block and a device would never end."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
"""What a path can be instead of a regular file."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, to read its bytes.

    Raises:
        ValueError: it is something else, or a link to a file that does not exist.
        FileNotFoundError: nothing has that name.
        OSError: it cannot be opened.
    """
    check_regular(path)
    # the kind is checked again on what was opened; without O_NONBLOCK, a pipe that took its place would block here
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    try:
        _check_mode(path, os.fstat(descriptor).st_mode)
    except ValueError:
        file.close()
        raise
    return file


def open_named(path: Path) -> BinaryIO:
    """As `open_regular`, of a file that somebody named.

    Raises:
        ValueError: also where nothing has that name.
        OSError: it cannot be opened.
    """
    try:
        return open_regular(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None


def check_regular(path: Path) -> None:
    """Check that a path is a regular file, before a library opens it by its name.

    Raises:
        ValueError: it is something else, or a link to a file that does not exist.
        FileNotFoundError: nothing has that name.
        OSError: it cannot be looked up.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise ValueError(
                f"{path} is a link to a file that does not exist; the copy or download is incomplete"
            ) from None
        raise
    _check_mode(path, mode)


def _check_mode(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in KINDS if is_kind(mode)), "no regular file")
        raise ValueError(f"{path} is {kind}, not a file that can be read")
