"""Console output of all commands: messages, numbers and progress."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from seektune.io.text import on_one_line, printable

UNITS = ((10**9, "B"), (10**6, "M"), (10**3, "K"))
BYTE_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
PAUSE = 10.0
"""Seconds between progress lines if the output is not a terminal."""

Advance = Callable[[int, int], None]
"""Called with bytes done so far and in all."""
PartsDone = Callable[[int, int, str], None]
"""Called with parts done so far and in all, and a remark."""


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


@contextmanager
def byte_bar(label: str) -> Iterator[Advance]:
    """A progress bar of bytes on standard error; a line now and then if that is not a terminal."""
    if not sys.stderr.isatty():
        yield _Lines(label)
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn(label), *columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def part_bar(label: str) -> Iterator[PartsDone]:
    """A progress bar of parts with a remark, on standard error; a line now and then if that is not a terminal."""
    if not sys.stderr.isatty():
        lines = _Lines(label)
        yield lambda done, total, remark: lines.tell(f"{done} of {total}, {remark}")
        return
    columns = (BarColumn(), TextColumn("{task.fields[remark]}"), TimeRemainingColumn())
    with Progress(TextColumn(label), *columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=None, remark="")
        yield lambda done, total, remark: progress.update(task, completed=done, total=total, remark=remark)


class _Lines:
    """Progress in plain lines."""

    def __init__(self, label: str):
        self._label = label
        self._told = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        self.tell(f"{size(done)} of {size(total)}")

    def tell(self, state: str) -> None:
        """Print a line, if the last one is long ago."""
        if time.monotonic() - self._told >= PAUSE:
            self._told = time.monotonic()
            print(f"{self._label}: {state}", file=sys.stderr, flush=True)


def _in_units(number: int, units: tuple[tuple[int, str], ...]) -> str:
    for unit, name in units:
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return str(number)
