"""The helper of the other tests here: values by rank, and no failure that stays silent or hangs."""

import os
import signal

import pytest
import torch
import torch.distributed as dist

from .workers import WorkersFailed, run_workers


def summed(value: int) -> tuple[int, int, int]:
    total = torch.tensor(value + dist.get_rank())
    dist.all_reduce(total)
    return dist.get_rank(), int(total), torch.get_num_threads()


def test_workers_talk_and_return_by_rank():
    assert run_workers(3, summed, 10) == [(0, 33, 1), (1, 33, 1), (2, 33, 1)]


def failing(how: str) -> None:
    if dist.get_rank() == 1:
        if how == "dies":
            os._exit(3)
        raise ValueError("this is it")
    signal.pause()


@pytest.mark.parametrize(("how", "said"), [("raises", "rank 1.*this is it"), ("dies", "rank 1: died")])
def test_a_failing_worker_is_named_and_the_others_are_ended(how: str, said: str):
    with pytest.raises(WorkersFailed, match=f"(?s)rank 0: gave no answer.*{said}"):
        run_workers(2, failing, how, grace=0.1)
