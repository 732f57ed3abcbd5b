"""The processes of a command that decodes, and the part of a checkpoint that each of them holds."""

from dataclasses import dataclass, field
from math import gcd

import torch

from seektune.model.config import DeepseekV4Config
from seektune.parallel.dims import ParallelDims
from seektune.parallel.mesh import Mesh
from seektune.parallel.process_group import ALONE, ProcessSlot
from seektune.signals import Interruption


@dataclass(frozen=True)
class DecodeProcesses:
    """The processes that decode together, in the default process group; by default this one alone."""

    slot: ProcessSlot = ALONE
    ep_size: int | None = None
    """Processes over which the routed experts are spread; None = as many as divide processes and experts."""
    interruption: Interruption = field(default_factory=lambda: Interruption(worker=True), compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this process reads prompts and prints (rank 0)."""
        return self.slot.world == 1 or torch.distributed.get_rank() == 0

    def mesh(self, config: DeepseekV4Config) -> Mesh:
        """The mesh: experts spread over `ep_size` processes, everything else on each. Collective.

        Raises:
            ValueError: `ep_size` does not divide the processes or the experts.
        """
        return Mesh.of(decode_dims(self.slot.world, self.ep_size, config.n_routed_experts), self.slot.device)


ONE_PROCESS = DecodeProcesses()


def decode_dims(world: int, ep_size: int | None, experts: int) -> ParallelDims:
    """The mesh sizes of decoding.

    Raises:
        ValueError: `ep_size` does not divide the processes or the experts.
    """
    size = gcd(world, experts) if ep_size is None else ep_size
    if world % size or experts % size:
        raise ValueError(
            f"--ep={size} must divide the {world} processes and the model's {experts} experts; "
            f"--ep={gcd(world, experts)} does"
        )
    return ParallelDims(world, 1, world, 1, 1, size)
