"""Joins and leaves the default process group."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

IDLE_TIMEOUT = timedelta(days=365)
"""How long ranks wait for a command, which may be the next message of a chat, or come after hours of a reward. A rank
that dies is noticed at once."""


@dataclass(frozen=True)
class ProcessSlot:
    """World size and local rank that a launcher gave to a process."""

    world: int = 1
    """Processes of the job."""
    local_rank: int = 0
    """Number of this one on its machine, which is the number of its GPU."""
    worker: bool = False
    """Whether a launcher started this process, and decides what a second request to stop means."""

    @property
    def device(self) -> torch.device:
        """The GPU if there is one."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")


ALONE = ProcessSlot()


def command_group(backend: str = "gloo") -> dist.ProcessGroup:
    """A group of all processes for the commands of rank 0, between which any time may pass. Collective."""
    return dist.new_group(backend=backend, timeout=IDLE_TIMEOUT)


@contextmanager
def process_group(slot: ProcessSlot) -> Iterator[None]:
    """A process group of all processes, if there are several: NCCL between GPUs, gloo between CPUs.

    The launcher's environment says where they meet.
    """
    if slot.world == 1:
        yield
        return
    on_gpu = slot.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(slot.device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
