"""What `seektune doctor` starts under torchrun: processes form a group, compare their clocks and run an all-reduce.

On several nodes: `torchrun --nnodes=2 ... -m seektune.workflows.comm_check` on each.
"""

import json
import os
from time import monotonic, time

import torch
import torch.distributed as dist

from seektune.parallel.process_group import ProcessSlot, process_group

MEGABYTES = 16
TURNS = 5


def meet() -> None:
    """Join the process group of torchrun's environment; rank 0 prints the results as JSON."""
    slot = ProcessSlot(int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
    torch.set_num_threads(1)
    with process_group(slot):
        clocks = _clocks(slot.device)
        seconds = _exchange(slot.device)
        if dist.get_rank() == 0:
            size = MEGABYTES * 10**6
            share = 2 * (slot.world - 1) / max(slot.world, 1)
            found = {
                "processes": slot.world,
                "backend": dist.get_backend(),
                "clock_skew_s": max(clocks) - min(clocks),
                "all_reduce_gb_s": size * share / seconds / 1e9,
            }
            print(json.dumps(found), flush=True)


def _clocks(device: torch.device) -> list[float]:
    """The time of day on each process right after a barrier."""
    dist.barrier()
    own = torch.tensor([time()], dtype=torch.float64, device=device)
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    return [float(each) for each in every]


def _exchange(device: torch.device) -> float:
    """Seconds of an all-reduce; its result is checked.

    Raises:
        RuntimeError: the result is wrong.
    """
    x = torch.ones(MEGABYTES * 10**6 // 4, device=device)
    dist.all_reduce(x)
    if float(x[0]) != dist.get_world_size():
        raise RuntimeError(f"ones of {dist.get_world_size()} processes sum to {float(x[0])}")
    began = monotonic()
    for _ in range(TURNS):
        dist.all_reduce(x)
        float(x[0])  # waits for the device
    return (monotonic() - began) / TURNS


if __name__ == "__main__":
    meet()
