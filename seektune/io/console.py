"""Console output of all commands: messages, numbers and progress."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from seektune.io.text import on_one_line, printable

UNITS = ((10**9, "B"), (10**6, "M"), (10**3, "K"))
BYTE_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
PAUSE = 10.0
"""Seconds between progress lines if the output is not a terminal."""

Advance = Callable[[int, int], None]
"""Called with bytes or rows done so far and in all."""


def say(sentence: str) -> None:
    """Print at once, also into a pipe; what cannot be printed is escaped, as `printable` does."""
    print(printable(sentence), flush=True)


@contextmanager
def speaking(aloud: bool) -> Iterator[None]:
    """Let standard output through, or discard it: of processes that would print the same, one prints."""
    if aloud:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def many(number: int) -> str:
    """A large count in three to five digits: `284.33 B`."""
    return _in_units(number, UNITS)


def size(number: int) -> str:
    """Bytes in three to five digits: `159.61 GB`."""
    return f"{number} bytes" if number < 1000 else _in_units(number, BYTE_UNITS)


def counted(number: int, thing: str) -> str:
    """`1 tensor`, `69,187 tensors`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(on_one_line, names[:most])) + more


def byte_bar(label: str) -> AbstractContextManager[Advance]:
    """A progress bar of bytes on standard error; a line now and then if that is not a terminal."""
    return _bar(label, size, (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()))


def row_bar(label: str) -> AbstractContextManager[Advance]:
    """The same for rows."""
    return _bar(label, "{:,}".format, (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()))


@contextmanager
def _bar(label: str, written: Callable[[int], str], columns: Sequence[ProgressColumn]) -> Iterator[Advance]:
    if not sys.stderr.isatty():
        yield _Lines(label, written)
        return
    with Progress(TextColumn(label), *columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class _Lines:
    """Progress in plain lines."""

    def __init__(self, label: str, written: Callable[[int], str]):
        self._label = label
        self._written = written
        self._told = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._told >= PAUSE:
            self._told = time.monotonic()
            print(f"{self._label}: {self._written(done)} of {self._written(total)}", file=sys.stderr, flush=True)


def _in_units(number: int, units: tuple[tuple[int, str], ...]) -> str:
    for unit, name in units:
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return str(number)
