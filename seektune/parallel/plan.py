"""How a model is spread over a number of processes, and what each of them is; plain arithmetic without torch."""

from dataclasses import dataclass
from typing import Protocol

from seektune.parallel.config import ParallelConfig
from seektune.parallel.stages import count_stages, microbatches_fit

LISTED = 6
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
    problem = _misfit(plan)
    if problem is None and architecture is not None:
        problem = _uncuttable(plan, config, architecture)
    if problem is None:
        return plan
    raise ValueError(f"{problem}; {_offers(config, world, architecture)}")


def check_batch(plan: Plan, config: ParallelConfig, architecture: Architecture, rows: int, micro_size: int) -> None:
    """Check that a step's rows can be dealt out.

    Raises:
        ValueError: they cannot; the sentence says what would do.
    """
    if rows % plan.data_size:
        raise ValueError(
            f"batch.global_size {rows} cannot be dealt out to {plan.data_size} data-parallel groups; "
            f"set --batch.global_size={-(-rows // plan.data_size) * plan.data_size}"
        )
    own, key = rows // plan.data_size, "batch.micro_size"
    micro = micro_size
    if plan.pp_size > 1 and config.pipeline.microbatch is not None:
        key, micro = "parallel.pipeline.microbatch", config.pipeline.microbatch
    if own % micro:
        fits = max(size for size in range(1, own + 1) if own % size == 0 and size <= micro)
        raise ValueError(
            f"{key} {micro} does not divide the {own} rows that each of {plan.data_size} data-parallel groups gets of "
            f"batch.global_size {rows}; set --{key}={fits}"
        )
    if plan.pp_size > 1:
        layers, mtp = architecture.num_hidden_layers, architecture.num_nextn_predict_layers
        stages = count_stages(config.pipeline, plan.pp_size, layers, mtp)
        if problem := microbatches_fit(config.pipeline.schedule, own // micro, plan.pp_size, stages):
            raise ValueError(f"{problem}; change batch.global_size or {key}")


def _misfit(plan: Plan) -> str | None:
    product = plan.pp_size * plan.cp_size * plan.data_size
    sizes = f"pp_size {plan.pp_size} x cp_size {plan.cp_size} x dp {plan.data_size}"
    if product != plan.world:
        return f"parallel: {sizes} is {product} processes, but there are {plan.world}"
    if plan.stage_size % plan.ep_size or (plan.fsdp_size % plan.ep_size and plan.ep_size % plan.fsdp_size):
        return f"parallel.ep_size {plan.ep_size} cannot be carved out of cp {plan.cp_size} x dp {plan.data_size}"
    return None


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
    """The layouts nearest to what was asked for that fit this world and model."""
    found = []
    for pp in _divisors(world):
        for cp in (config.cp_size, 1):
            for ep in _divisors(world // pp):
                plan = Plan(world, pp, 1, max(1, world // pp // cp), cp, ep)
                if _misfit(plan) is None and (architecture is None or _uncuttable(plan, config, architecture) is None):
                    found.append(plan)
    found.sort(
        key=lambda plan: (
            abs(plan.pp_size - config.pp_size) + abs(plan.ep_size - config.ep_size) + abs(plan.cp_size - config.cp_size)
        )
    )
    offers = list(dict.fromkeys(f"pp_size {p.pp_size}, ep_size {p.ep_size}, cp_size {p.cp_size}" for p in found))
    return f"{world} processes fit " + " or ".join(offers[:LISTED]) if offers else f"nothing fits {world} processes"


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
