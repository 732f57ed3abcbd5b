"""Runs parts in a process that is replaced when one fails, within a budget of seconds, and reports each at once."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any

import torch

from bench.gpu.part import Bench, Deadline, Found, Part

Outcome = dict[str, Any]
"""`status` (done, partial, failed or skipped), `seconds`, and `found`, `error` or `reason`.

A partial one left out its last cases, as its time was over.
"""
Report = Callable[[str, Outcome], None]
FRAMES = 4
"""Frames of a failed part's traceback that are recorded."""


def run_parts(parts: Sequence[Part], bench: Bench, budget: float, report: Report) -> None:
    """Measure all parts that fit the budget, in their order; a later and shorter one may fit where one did not."""
    begin = monotonic()
    found: dict[str, Found] = {}
    worker = Worker(bench.device)
    for part in parts:
        left = budget - (monotonic() - begin)
        if part.seconds > left:
            reason = f"needs about {part.seconds:g} s; {max(left, 0):.0f} s of {budget:g} were left"
            report(part.name, {"status": "skipped", "seconds": 0.0, "reason": reason})
            continue
        outcome = worker.measure(part, replace(bench, found=dict(found)), min(part.patience, left))
        if "found" in outcome:
            found[part.name] = outcome["found"]
        report(part.name, outcome)
    worker.close()


class Worker:
    """A process that measures parts; a failed one may leave a broken CUDA context, so it is replaced."""

    def __init__(self, device: str):
        # CUDA cannot be used in a forked process
        self._context = get_context("spawn" if device == "cuda" else "fork")
        self._start()

    def measure(self, part: Part, bench: Bench, limit: float) -> Outcome:
        """Measure one part; it is killed after `limit` seconds."""
        begin = monotonic()
        outcome = self._ask(part, bench, limit)
        if outcome["status"] == "failed":
            self.close()
            self._start()
        return {**outcome, "seconds": round(monotonic() - begin, 1)}

    def _ask(self, part: Part, bench: Bench, limit: float) -> Outcome:
        self._pipe.send((part, bench, limit))
        if not self._pipe.poll(limit):
            return {"status": "failed", "error": f"killed after {limit:.0f} s"}
        try:
            outcome: Outcome = self._pipe.recv()
        except EOFError:
            self._process.join()
            return {"status": "failed", "error": f"its process ended with code {self._process.exitcode}"}
        return outcome

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection) -> None:
    while True:
        part, bench, limit = pipe.recv()
        torch.manual_seed(0)
        try:
            deadline = Deadline(monotonic() + 0.8 * limit)
            found = part.measure(replace(bench, deadline=deadline))
            outcome: Outcome = {"status": "partial" if deadline.was_over else "done", "found": found}
        except Exception as error:
            where = traceback.format_exc(limit=-FRAMES)
            outcome = {"status": "failed", "error": f"{type(error).__name__}: {error}", "traceback": where}
        if bench.device == "cuda" and "found" in outcome:
            torch.cuda.empty_cache()
        pipe.send(outcome)
