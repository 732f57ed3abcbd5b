"""Every mistake and failure as an exit code and one line."""

import contextlib
import os
import sys
from collections.abc import Iterator

import typer

from seektune.exit_codes import FAILURE, RESUME_ME, USER_MISTAKE
from seektune.launch.job import JobEnded
from seektune.signals import Interrupted

RENAMED = {"--packed": "; it is now called --quantized"}
"""Options by the names that they had before, and what is added to the message that they are unknown."""
LONGEST_MESSAGE = 500
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""Words by which torch's allocators are known; they raise RuntimeError."""


class ShortOfMemoryError(Exception):
    """Memory did not suffice; the sentence says what helps."""


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code of an error and its sentence: 2 for the user's mistakes, 1 for failures."""
    if isinstance(error, JobEnded):
        return error.ending.code, error.ending.sentence
    if isinstance(error, Interrupted):
        return RESUME_ME, str(error)
    if isinstance(error, KeyboardInterrupt) or _wraps_interrupt(error):
        return FAILURE, str(error) if isinstance(error, KeyboardInterrupt) and str(error) else "interrupted by Ctrl-C"
    if isinstance(error, typer.TyperException):
        message = error.format_message()
        return USER_MISTAKE, message + next((hint for old, hint in RENAMED.items() if f": {old}" in message), "")
    if isinstance(error, ValueError):
        return USER_MISTAKE, str(error)
    if isinstance(error, BrokenPipeError):
        return FAILURE, ""
    if isinstance(error, ShortOfMemoryError):
        return FAILURE, str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        return FAILURE, f"{place}{error.strerror}" if error.strerror else str(error)
    if isinstance(error, ArithmeticError):
        return FAILURE, str(error)
    reason = f"{type(error).__name__}: {_one_line(error, 300)}".removesuffix(": ")
    return FAILURE, f"{reason} (SEEKTUNE_TRACEBACK=1 shows where)"


@contextlib.contextmanager
def told_of_memory(cure: str) -> Iterator[None]:
    """Work whose lack of memory has this cure.

    Raises:
        ShortOfMemoryError: there was not enough.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = str(error)
        if not isinstance(error, MemoryError) and not any(words in said.lower() for words in OUT_OF_MEMORY):
            raise
        raise ShortOfMemoryError(f"out of memory; {cure} ({said or type(error).__name__})") from error


def _wraps_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is what an error comes from: an import that it breaks off often says something else."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _one_line(text: object, most: int = LONGEST_MESSAGE) -> str:
    line = " ".join(str(text).split())
    line = line if len(line) <= most else f"{line[: most - 1]}…"
    return "".join(sign if sign.isprintable() else "?" for sign in line)


def complain(name: str, message: str) -> None:
    """Print a line to standard error, if there is anything to say and anyone to hear it."""
    if message:
        with contextlib.suppress(OSError):
            print(f"{name}: {_one_line(message)}", file=sys.stderr, flush=True)


def stop_writing() -> None:
    """Send what is still buffered nowhere: Python's own flush at the end would fail again, with a traceback."""
    if sys.stdout is None:
        return
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
