"""Sizes of the mesh and coordinates of each rank; plain arithmetic without torch."""

from dataclasses import dataclass
from math import isqrt, log2
from typing import Protocol

from seektune.parallel.config import MAX_PROCESSES, ParallelConfig
from seektune.parallel.layer_split import count_stages

SUGGESTIONS = 4
"""Maximum layouts that an error message suggests."""


class ModelSizes(Protocol):
    """The sizes of a model that a layout must divide."""

    num_hidden_layers: int
    n_routed_experts: int
    moe_intermediate_size: int
    hidden_size: int

    @property
    def mtp_layers(self) -> int:
        """Number of MTP blocks."""


@dataclass(frozen=True)
class RankCoords:
    """The coordinates of a process."""

    pp: int
    dp: int
    """Data-parallel index: processes with the same one share their rows."""
    cp: int
    ep: int
    expert_shard: int


@dataclass(frozen=True)
class ParallelDims:
    """Sizes of all axes. Ranks count along cp first, then dp_shard, dp_replicate and pp; ep lies along the first."""

    world: int
    pp_size: int
    dp_replicate: int
    dp_shard: int
    cp_size: int
    ep_size: int

    @property
    def stage_size(self) -> int:
        """Processes of a pipeline stage."""
        return self.world // self.pp_size

    @property
    def data_size(self) -> int:
        """Number of data-parallel groups, each with its own rows."""
        return self.dp_replicate * self.dp_shard

    @property
    def fsdp_size(self) -> int:
        """Number of shards of attention and shared parts."""
        return self.dp_shard * self.cp_size

    @property
    def expert_shard(self) -> int:
        """Number of FSDP2 shards of the experts of one expert-parallel rank."""
        return max(1, self.fsdp_size // self.ep_size)

    @property
    def expert_replicate(self) -> int:
        """Replicas of each expert."""
        return self.stage_size // (self.ep_size * self.expert_shard)

    def coords(self, rank: int) -> RankCoords:
        """The coordinates of a rank."""
        within = rank % self.stage_size
        return RankCoords(
            pp=rank // self.stage_size,
            dp=within // self.cp_size,
            cp=within % self.cp_size,
            ep=within % self.ep_size,
            expert_shard=within // self.ep_size % self.expert_shard,
        )

    def __str__(self) -> str:
        sizes = {"pp": self.pp_size, "cp": self.cp_size, "dp": self.data_size, "ep": self.ep_size}
        copies = f" ({self.dp_replicate} copies)" if self.dp_replicate > 1 else ""
        said = {name: f"{name} {size}{copies if name == 'dp' else ''}" for name, size in sizes.items() if size > 1}
        return " x ".join(said.values()) or "one process"


def make_dims(config: ParallelConfig, world: int, architecture: ModelSizes | None = None) -> ParallelDims:
    """The mesh sizes of a recipe for `world` processes.

    Raises:
        ValueError: the sizes do not multiply out to `world`, or the model cannot be cut so; it lists what fits. Or
            `world` is absurd.
    """
    if not 0 < world <= MAX_PROCESSES:
        raise ValueError(f"{world} processes are not a number from 1 to {MAX_PROCESSES}; check nodes and sizes")
    dims = _requested(config, world)
    problem = _size_problem(dims, config)
    if problem is None and architecture is not None:
        problem = _model_problem(dims, config, architecture)
    if problem is None:
        return dims
    raise ValueError(f"{problem}; {_suggestions(config, world, architecture)}")


def _requested(config: ParallelConfig, world: int) -> ParallelDims:
    """The requested sizes, unchecked."""
    fixed = config.pp_size * config.cp_size * config.dp_replicate
    shard = config.dp_shard or max(1, world // fixed)
    return ParallelDims(world, config.pp_size, config.dp_replicate, shard, config.cp_size, config.ep_size)


def _size_problem(dims: ParallelDims, config: ParallelConfig) -> str | None:
    """Why the sizes do not multiply to the number of processes; None if they do."""
    product = dims.pp_size * dims.cp_size * dims.data_size
    ep = dims.ep_size
    pieces = dims.fsdp_size
    if product != dims.world or (dims.stage_size % ep and config.dp_shard is None):
        return f"{_asked(config)} {_takes(config)}, but this job has {_many(dims.world)}"
    if dims.stage_size % ep:
        return f"parallel.ep_size {ep} does not divide cp_size x dp_replicate x dp_shard, which is {dims.stage_size}"
    if pieces % ep and ep % pieces:
        return f"parallel.ep_size {ep} and dp_shard x cp_size {pieces} do not divide, one the other"
    return None


def _asked(config: ParallelConfig) -> str:
    keys = ("pp_size", "ep_size", "cp_size", "dp_replicate", "dp_shard")
    sizes = {key: size for key, size in config.model_dump(include=set(keys)).items() if size is not None and size > 1}
    return " x ".join(f"parallel.{key} {sizes[key]}" for key in keys if key in sizes) or "parallel.dp_shard 1"


def _takes(config: ParallelConfig) -> str:
    multiple = "" if config.dp_shard is not None else " or a multiple of that"
    return f"takes {_many(config.least_world())}{multiple}"


def _many(world: int) -> str:
    return "one process" if world == 1 else f"{world} processes"


def _model_problem(dims: ParallelDims, config: ParallelConfig, architecture: ModelSizes) -> str | None:
    experts = architecture.n_routed_experts
    if experts % dims.ep_size:
        return f"parallel.ep_size {dims.ep_size} does not divide the model's {experts} experts"
    pieces = dims.expert_shard
    widths = (architecture.moe_intermediate_size, architecture.hidden_size)
    if experts // dims.ep_size % pieces and any(width % pieces for width in widths):
        return f"{experts // dims.ep_size} experts of width {widths[0]} cannot be cut into {pieces} equal pieces"
    if dims.pp_size > 1:
        try:
            count_stages(config.pipeline, dims.pp_size, architecture.num_hidden_layers, architecture.mtp_layers)
        except ValueError as error:
            return str(error)
    return None


def _suggestions(config: ParallelConfig, world: int, architecture: ModelSizes | None) -> str:
    """Overrides that fit this world and model, the closest to the requested sizes first."""
    found = _fitting(config, world, architecture)
    if not found:  # only if it must be, the data axis is another one too
        found = _fitting(config.model_copy(update={"dp_replicate": 1, "dp_shard": None}), world, architecture)
    found.sort(key=lambda other: _distance(other, config))
    offers = [_overrides(other, config) for other in found[:SUGGESTIONS]]
    return f"{_many(world)} can do {', or '.join(offers)}" if offers else f"nothing fits {_many(world)}"


def _fitting(config: ParallelConfig, world: int, architecture: ModelSizes | None) -> list[ParallelConfig]:
    """Other sizes of the pipeline, expert and context axes that fit."""
    found = []
    for pp in divisors(world):
        for cp in dict.fromkeys((config.cp_size, 1)):
            for ep in divisors(world // pp):
                other = config.model_copy(update={"pp_size": pp, "cp_size": cp, "ep_size": ep})
                dims = _requested(other, world)
                if _size_problem(dims, other) is None and (
                    architecture is None or _model_problem(dims, other, architecture) is None
                ):
                    found.append(other)
    return found


def _overrides(other: ParallelConfig, config: ParallelConfig) -> str:
    """Overrides from the requested sizes to others."""
    new = other.model_dump()
    old = config.model_dump()
    axes = [key for key in ("pp_size", "ep_size", "cp_size") if max(new[key], old[key]) > 1]
    data = [key for key in ("dp_replicate", "dp_shard") if new[key] != old[key]]
    shown = {key: "null" if new[key] is None else new[key] for key in (*axes, *data)}
    return " ".join(f"--parallel.{key}={value}" for key, value in shown.items())


def _distance(other: ParallelConfig, config: ParallelConfig) -> float:
    """Distance from the requested sizes, in doublings."""
    pairs = ((other.pp_size, config.pp_size), (other.ep_size, config.ep_size), (other.cp_size, config.cp_size))
    return sum(abs(log2(a / b)) for a, b in pairs)


def divisors(number: int) -> list[int]:
    """The numbers that divide a positive number, ascending; in time that grows with its root."""
    small = [size for size in range(1, isqrt(number) + 1) if number % size == 0]
    return [*small, *(number // size for size in reversed(small) if size * size != number)]
