"""Encodes shards in this process, or in several worker processes."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from threading import Thread

from seektune.data.store.shard import ShardJob, ShardRecord

LEAST_SHARDS = 16
"""With fewer shards, starting processes takes longer than they save."""


def run_here(jobs: Sequence[ShardJob], done: Callable[[ShardRecord], None]) -> list[ShardRecord]:
    """Run jobs, in worker processes if there are many and this machine has the cores.

    Raises:
        ValueError, OSError: as `ShardJob.run`; the error of the first job that failed.
    """
    workers = min(available_cores(), len(jobs))
    if len(jobs) < LEAST_SHARDS or workers == 1:
        return [_told(job.run(), done) for job in jobs]
    return run_in_processes(jobs, done, workers)


def run_in_processes(jobs: Sequence[ShardJob], done: Callable[[ShardRecord], None], workers: int) -> list[ShardRecord]:
    """Run jobs in `workers` processes, which end with this one.

    Raises:
        ValueError, OSError: as `ShardJob.run`; the error of the first job that failed.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin_worker) as pool:
        try:
            return [_told(record, done) for record in pool.map(ShardJob.run, jobs)]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _told(record: ShardRecord, done: Callable[[ShardRecord], None]) -> ShardRecord:
    done(record)
    return record


def _begin_worker() -> None:
    """In a worker: one thread for the tokenizer, signals are for the parent, and no life without it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
