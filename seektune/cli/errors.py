"""Every error as an exit code and one line on standard error."""

import contextlib
import os
import sys
from collections.abc import Iterator

import typer

from seektune.exit_codes import FAILURE, RESUME_ME, USER_MISTAKE
from seektune.launch.job import JobEnded
from seektune.signals import Interrupted

RENAMED = {"--packed": "--quantized", "--rows": "--max-num-seqs"}
"""Former names of options; the error for one names its successor."""
LONGEST_MESSAGE = 500
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""Messages of torch's allocators, which raise RuntimeError."""


class OutOfMemoryError(Exception):
    """Memory ran out; the message says what helps."""


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code and message of an error: 2 for invalid input, 1 for failures, 75 for a run that can resume."""
    if isinstance(error, JobEnded):
        return error.status.code, error.status.message
    if isinstance(error, Interrupted):
        return RESUME_ME, str(error)
    if isinstance(error, KeyboardInterrupt) or _wraps_interrupt(error):
        return FAILURE, str(error) if isinstance(error, KeyboardInterrupt) and str(error) else "interrupted by Ctrl-C"
    if isinstance(error, typer.TyperException):
        return USER_MISTAKE, _with_new_name(error.format_message().replace(": Value error, ", ": ", 1))
    if isinstance(error, ValueError):
        return USER_MISTAKE, str(error)
    if isinstance(error, BrokenPipeError):
        return FAILURE, ""
    if isinstance(error, OutOfMemoryError):
        return FAILURE, str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        return FAILURE, f"{place}{error.strerror}" if error.strerror else str(error)
    if isinstance(error, ArithmeticError):
        return FAILURE, str(error)
    reason = f"{type(error).__name__}: {_one_line(error, 300)}".removesuffix(": ")
    return FAILURE, f"{reason} (SEEKTUNE_TRACEBACK=1 shows where)"


@contextlib.contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Run the block; if memory runs out, the error says what to change.

    Raises:
        OutOfMemoryError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        message = str(error)
        if not isinstance(error, MemoryError) and not any(words in message.lower() for words in OUT_OF_MEMORY):
            raise
        raise OutOfMemoryError(f"out of memory; {advice} ({message or type(error).__name__})") from error


def _with_new_name(message: str) -> str:
    """The message about an unknown option, with the option's new name if it was renamed."""
    return message + next((f"; it is now called {new}" for old, new in RENAMED.items() if f": {old}" in message), "")


def _wraps_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C caused an error: an interrupted import often raises something else."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _one_line(text: object, most: int = LONGEST_MESSAGE) -> str:
    line = " ".join(str(text).split())
    line = line if len(line) <= most else f"{line[: most - 1]}…"
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def print_error(name: str, message: str) -> None:
    """Print a message to standard error as one line; an empty one, or a closed standard error, prints nothing."""
    if message:
        with contextlib.suppress(OSError):
            print(f"{name}: {_one_line(message)}", file=sys.stderr, flush=True)


def discard_stdout() -> None:
    """Discard what is still buffered: Python's own flush at exit would fail again, with a traceback."""
    if sys.stdout is None:
        return
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
