"""Processes forked from one that has imported torch and the package, which takes a tenth of starting each anew."""

from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

from tests.patience import HUNG

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["tests.preloaded"])


def run_forked(function: Callable[..., Any], *args: Any) -> int:
    """Call a function of a module's top level in a process of its own; its exit code, as `subprocess` has it."""
    process = FORKS.Process(target=function, args=args)
    process.start()
    process.join(HUNG)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"{function.__name__} hangs")
    return process.exitcode
