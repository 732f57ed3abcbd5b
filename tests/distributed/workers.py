"""Starts n processes that form a gloo group, and brings back what they return or how they failed."""

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist

from tests.forks import FORKS
from tests.patience import HUNG


class WorkersFailed(AssertionError):  # noqa: N818
    """What went wrong, by rank."""


def run_workers(count: int, function: Callable[..., Any], *args: Any, grace: float = 60) -> list[Any]:
    """Call a function of a module's top level in `count` processes and return what each returned, by rank.

    `torch.distributed` is initialised with gloo in each, one thread each.

    Raises:
        WorkersFailed: a worker raised, died or hangs; all tracebacks with their ranks. After a failure the others have
            `grace` seconds to fail too, then they are ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        workers = []
        for rank in range(count):
            ours, theirs = FORKS.Pipe(duplex=False)
            arguments = theirs, rank, count, store, function, args
            process = FORKS.Process(target=_work, args=arguments, daemon=True)
            process.start()
            theirs.close()
            workers.append((process, ours))
        try:
            answers = _answers([ours for _, ours in workers], grace)
        finally:
            for process, ours in workers:
                process.terminate()
                process.join(5)
                process.kill()
                ours.close()
    if failures := [f"--- rank {rank}: {said}" for rank, (well, said) in enumerate(answers) if not well]:
        raise WorkersFailed("\n".join(failures))
    return [value for _, value in answers]


def _answers(pipes: list[Connection], grace: float) -> list[tuple[bool, Any]]:
    """Whether each worker ended well, and its value or its traceback."""
    answers: list[tuple[bool, Any]] = [(False, "gave no answer")] * len(pipes)
    open_, until = dict(zip(pipes, range(len(pipes)), strict=True)), monotonic() + HUNG
    while open_ and (ready := wait(list(open_), max(until - monotonic(), 0))):
        for pipe in ready:
            rank = open_.pop(pipe)
            try:
                answers[rank] = pipe.recv()
            except EOFError:
                answers[rank] = False, "died without a word"
            if not answers[rank][0]:
                until = min(until, monotonic() + grace)
    return answers


def _work(answer: Connection, rank: int, count: int, store: str, function: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank))
    try:
        dist.init_process_group(
            "gloo", store=dist.FileStore(store, count), rank=rank, world_size=count, timeout=timedelta(seconds=HUNG)
        )
        value = function(*args)
        pickle.dumps(value)
        # nobody leaves while another still talks to it
        dist.barrier()
    except BaseException:
        answer.send((False, traceback.format_exc()))
        return
    answer.send((True, value))
    dist.destroy_process_group()
