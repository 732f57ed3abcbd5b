"""Processes forked from one that has imported torch and the package, which takes a tenth of starting each anew."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.patience import HUNG

Run = Callable[..., subprocess.CompletedProcess[str]]
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


SERVER = """
import atexit, gc, json, os, sys
gc.freeze()
atexit.register(gc.unfreeze)
for line in sys.stdin:
    code, words, files = json.loads(line)
    child = os.fork()
    if child == 0:
        for descriptor, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
        sys.argv = ["-c", *words]
        exec(code, {"__name__": "__main__"})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@contextmanager
def interpreter(imports: str, folder: Path, **settings: str) -> Iterator[Run]:
    """A new Python with these environment variables; it runs code and words in processes forked after the imports."""
    command = [sys.executable, "-P", "-c", f"import {imports}\n{SERVER}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **settings}
    ) as server:
        numbers = count()

        def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
            number = next(numbers)
            files = folder / f"out-{number}", folder / f"error-{number}"
            print(json.dumps([code, words, [*map(str, files)]]), file=server.stdin, flush=True)
            assert server.stdout is not None
            answer = server.stdout.readline()
            return subprocess.CompletedProcess(words, int(answer), *(file.read_text() for file in files))

        yield run
