"""The processes of a command that decodes, and the part of a checkpoint that each of them holds."""

from dataclasses import dataclass, field
from math import gcd

import torch

from seektune.generate.ranks import MeshRanks
from seektune.model.choices import NumericsName
from seektune.model.config import DeepseekV4Config
from seektune.parallel.dims import ParallelDims, divisors
from seektune.parallel.mesh import Mesh
from seektune.parallel.process_group import ALONE, ProcessSlot, command_group
from seektune.signals import Interruption


@dataclass(frozen=True)
class DecodeProcesses:
    """The processes that decode together, in the default process group; by default this one alone."""

    slot: ProcessSlot = ALONE
    ep_size: int | None = None
    """Processes over which the routed experts are spread; None = as many as divide processes and experts."""
    pp_size: int = 1
    """Pipeline stages over which the layers are spread."""
    interruption: Interruption = field(default_factory=lambda: Interruption(worker=True), compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this process reads prompts and prints (rank 0)."""
        return self.slot.world == 1 or torch.distributed.get_rank() == 0

    def mesh(self, config: DeepseekV4Config) -> Mesh:
        """The mesh: layers spread over stages, and experts over processes of a stage. Collective.

        Raises:
            ValueError: as `decode_dims`.
        """
        return Mesh.of(decode_dims(self.slot.world, self.ep_size, self.pp_size, config), self.slot.device)

    def ranks(self) -> MeshRanks:
        """The processes as one leader and its followers. Collective."""
        return MeshRanks(command_group(), self.interruption, self.pp_size)

    def refuse_with_pipeline(self, wanted: bool, flag: str) -> None:
        """Refuse what does not work with pipeline stages.

        Raises:
            ValueError: it is `wanted`.
        """
        if wanted and self.pp_size > 1:
            raise ValueError(f"{flag} does not work with --pp={self.pp_size}; leave one of them out")

    def check_static_steps(self, wanted: bool, speculative: bool, numerics: NumericsName = "plain") -> None:
        """Check, before weights are loaded, that an engine here can have static steps if they are wanted.

        Raises:
            ValueError: it cannot.
        """
        obstacles = {
            "--speculative": speculative,
            f"{self.slot.world} processes": self.slot.world > 1,
            "--numerics serving": numerics == "serving",
        }
        for other, there in obstacles.items():
            if wanted and there:
                raise ValueError(f"--cuda-graphs does not work with {other}; leave it out")


ONE_PROCESS = DecodeProcesses()


def decode_dims(world: int, ep_size: int | None, pp_size: int, config: DeepseekV4Config) -> ParallelDims:
    """The mesh sizes of decoding.

    Raises:
        ValueError: `pp_size` does not divide the processes, or is above the number of layers; `ep_size` does not divide
            the processes of a stage or the experts.
    """
    layers = config.num_hidden_layers
    experts = config.n_routed_experts
    if world % pp_size or pp_size > layers:
        most = max(size for size in divisors(world) if size <= layers)
        raise ValueError(
            f"--pp={pp_size} must divide the {world} processes and be at most the model's {layers} layers; "
            f"--pp={most} does"
        )
    stage = world // pp_size
    size = gcd(stage, experts) if ep_size is None else ep_size
    if stage % size or experts % size:
        of_a_stage = "" if pp_size == 1 else " of a stage"
        raise ValueError(
            f"--ep={size} must divide the {stage} processes{of_a_stage} and the model's {experts} experts; "
            f"--ep={gcd(stage, experts)} does"
        )
    return ParallelDims(world, pp_size, stage, 1, 1, size)
