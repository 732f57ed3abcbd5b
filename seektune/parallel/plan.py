"""How a model is spread over a number of processes, and what each of them is; plain arithmetic without torch."""

from dataclasses import dataclass
from math import log2
from typing import Protocol

from seektune.parallel.config import ParallelConfig
from seektune.parallel.stages import count_stages, misfit_of

LISTED = 4
"""Layouts that an error message offers."""


class Architecture(Protocol):
    """What the arithmetic needs to know of a model."""

    num_hidden_layers: int
    num_nextn_predict_layers: int
    n_routed_experts: int
    moe_intermediate_size: int
    hidden_size: int


@dataclass(frozen=True)
class Place:
    """The coordinates of a process."""

    pp: int
    dp: int
    """Which rows it gets: processes of one `dp` share them."""
    cp: int
    ep: int
    expert_shard: int


@dataclass(frozen=True)
class Plan:
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
        """Processes, or groups of them, with rows of their own."""
        return self.dp_replicate * self.dp_shard

    @property
    def fsdp_size(self) -> int:
        """Pieces into which attention and shared parts are cut."""
        return self.dp_shard * self.cp_size

    @property
    def expert_shard(self) -> int:
        """Pieces into which the experts of one place on the expert axis are cut."""
        return max(1, self.fsdp_size // self.ep_size)

    @property
    def expert_replicate(self) -> int:
        """Copies of each expert."""
        return self.stage_size // (self.ep_size * self.expert_shard)

    def place(self, rank: int) -> Place:
        """Where a process stands."""
        within = rank % self.stage_size
        return Place(
            pp=rank // self.stage_size,
            dp=within // self.cp_size,
            cp=within % self.cp_size,
            ep=within % self.ep_size,
            expert_shard=within // self.ep_size % self.expert_shard,
        )

    def __str__(self) -> str:
        sizes = {"pp": self.pp_size, "cp": self.cp_size, "dp": self.data_size, "ep": self.ep_size}
        return " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "one process"


def make_plan(config: ParallelConfig, world: int, architecture: Architecture | None = None) -> Plan:
    """The plan of a recipe for `world` processes.

    Raises:
        ValueError: the sizes do not multiply out, or the model cannot be cut so; the sentence lists what fits.
    """
    fixed = config.pp_size * config.cp_size * config.dp_replicate
    shard = config.dp_shard or max(1, world // fixed)
    plan = Plan(world, config.pp_size, config.dp_replicate, shard, config.cp_size, config.ep_size)
    problem = f"{_asked(config)} {_takes(config)}, but this job has {_many(world)}" if _misfit(plan) else None
    if problem is None and architecture is not None:
        problem = _uncuttable(plan, config, architecture)
    if problem is None:
        return plan
    raise ValueError(f"{problem}; {_offers(config, world, architecture)}")


def rows_at_a_time(plan: Plan, config: ParallelConfig, architecture: Architecture, rows: int, micro_size: int) -> int:
    """Rows of a micro-batch: at most what the recipe says, and so many that each process gets as many micro-batches.

    A pipeline needs a certain number of them. How many there are changes memory and waiting, never the result.

    Args:
        plan: how the processes stand.
        config: the recipe's section.
        architecture: of the model.
        rows: of a step, `batch.global_size`.
        micro_size: the recipe's `batch.micro_size`.

    Raises:
        ValueError: the rows of a step cannot be dealt out; the sentence says how many can.
    """
    if rows % plan.data_size:
        raise ValueError(
            f"batch.global_size {rows} cannot be dealt out to {plan.data_size} data-parallel groups; "
            f"set --batch.global_size={-(-rows // plan.data_size) * plan.data_size}"
        )
    own, pipeline = rows // plan.data_size, config.pipeline
    most = micro_size if plan.pp_size == 1 or pipeline.microbatch is None else pipeline.microbatch
    sizes = [size for size in reversed(_divisors(own)) if size <= most]
    if plan.pp_size == 1:
        return sizes[0]
    stages = count_stages(pipeline, plan.pp_size, architecture.num_hidden_layers, architecture.num_nextn_predict_layers)
    fitting = [size for size in sizes if misfit_of(pipeline.schedule, own // size, plan.pp_size, stages) is None]
    if not fitting:
        problem = misfit_of(pipeline.schedule, own, plan.pp_size, stages)
        raise ValueError(
            f"{problem or pipeline.schedule}: each of {plan.data_size} data-parallel groups gets {own} of "
            f"batch.global_size {rows} rows; set --batch.global_size={stages * plan.data_size}"
        )
    return fitting[0]


def _misfit(plan: Plan) -> bool:
    """Whether the sizes do not multiply out."""
    if plan.pp_size * plan.cp_size * plan.data_size != plan.world:
        return True
    return plan.stage_size % plan.ep_size > 0 or (
        plan.fsdp_size % plan.ep_size > 0 and plan.ep_size % plan.fsdp_size > 0
    )


def _asked(config: ParallelConfig) -> str:
    keys = ("pp_size", "ep_size", "cp_size", "dp_replicate", "dp_shard")
    sizes = {key: size for key, size in config.model_dump(include=set(keys)).items() if size is not None and size > 1}
    return " x ".join(f"parallel.{key} {sizes[key]}" for key in keys if key in sizes) or "parallel.dp_shard 1"


def _takes(config: ParallelConfig) -> str:
    multiple = "" if config.dp_shard is not None else " or a multiple of that"
    return f"takes {_many(config.least_world())}{multiple}"


def _many(world: int) -> str:
    return "one process" if world == 1 else f"{world} processes"


def _uncuttable(plan: Plan, config: ParallelConfig, architecture: Architecture) -> str | None:
    experts = architecture.n_routed_experts
    if experts % plan.ep_size:
        return f"parallel.ep_size {plan.ep_size} does not divide the model's {experts} experts"
    pieces, widths = plan.expert_shard, (architecture.moe_intermediate_size, architecture.hidden_size)
    if experts // plan.ep_size % pieces and any(width % pieces for width in widths):
        return f"{experts // plan.ep_size} experts of width {widths[0]} cannot be cut into {pieces} equal pieces"
    if plan.pp_size > 1:
        try:
            count_stages(
                config.pipeline, plan.pp_size, architecture.num_hidden_layers, architecture.num_nextn_predict_layers
            )
        except ValueError as error:
            return str(error)
    return None


def _offers(config: ParallelConfig, world: int, architecture: Architecture | None) -> str:
    """Overrides that fit this world and model, the nearest to what was asked for first."""
    found = []
    for pp in _divisors(world):
        for cp in dict.fromkeys((config.cp_size, 1)):
            for ep in _divisors(world // pp):
                plan = Plan(world, pp, 1, max(1, world // pp // cp), cp, ep)
                if not _misfit(plan) and (architecture is None or _uncuttable(plan, config, architecture) is None):
                    found.append(plan)
    found.sort(key=lambda plan: _distance(plan, config))
    sizes = [{"pp_size": plan.pp_size, "ep_size": plan.ep_size, "cp_size": plan.cp_size} for plan in found[:LISTED]]
    asked = config.model_dump()
    offers = [
        " ".join(f"--parallel.{key}={size}" for key, size in each.items() if max(size, asked[key]) > 1)
        for each in sizes
    ]
    return f"{_many(world)} can do {', or '.join(offers)}" if offers else f"nothing fits {_many(world)}"


def _distance(plan: Plan, config: ParallelConfig) -> float:
    """How far the sizes are from what was asked for, in doublings."""
    pairs = ((plan.pp_size, config.pp_size), (plan.ep_size, config.ep_size), (plan.cp_size, config.cp_size))
    return sum(abs(log2(a / b)) for a, b in pairs)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
