"""Parts that end in every way."""

import os
import threading

from bench.gpu.part import Bench, Found


def right(bench: Bench) -> Found:
    return {"device": bench.device, "before": sorted(bench.found), "process": os.getpid()}


def late(bench: Bench) -> Found:
    """Has the time for one case only."""
    bench.deadline.at = 0.0
    return {"first": 1.0} if bench.is_late else {"first": 1.0, "second": 2.0}


def wrong(bench: Bench) -> Found:
    raise ArithmeticError("values differ")


def dies(bench: Bench) -> Found:
    os._exit(7)


def hangs(bench: Bench) -> Found:
    threading.Event().wait()
    raise AssertionError("unreachable")
