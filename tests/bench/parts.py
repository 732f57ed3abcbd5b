"""Parts that end in every way."""

import os
import threading

from bench.gpu.part import Bench, Found


def right(bench: Bench) -> Found:
    return {"device": bench.device, "before": sorted(bench.found), "process": os.getpid()}


def wrong(bench: Bench) -> Found:
    raise ArithmeticError("values differ")


def dies(bench: Bench) -> Found:
    os._exit(7)


def hangs(bench: Bench) -> Found:
    threading.Event().wait()
    raise AssertionError("unreachable")
