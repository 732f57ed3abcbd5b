"""A plan as an object: verdict, memory of every process, time of a step, and all that was assumed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from seektune.planner.formulas import BARS, EXACT, FORMULAS
from seektune.planner.hardware import GIGA, Cluster, facts
from seektune.planner.job import Layout
from seektune.planner.memory import RankMemory, first_ranks, fullest, rank_memory
from seektune.planner.search import Candidate
from seektune.planner.time import StepTime, step_time

EVERY_RANK = 512
"""Up to this many processes each is listed; of more, the first and the last of each stage."""
ESTIMATE = (
    "Counted: weights, buffers, gradients, moments, masters of every process; they equal the dry run's.",
    "Computed from shapes: gathered weights, whole gradients, FLOPs, messages.",
    "Estimated: activations, from what the kernels save; compared with tensors of CPU runs only (bench/plan.json), "
    "never with a GPU. Rows are full; real ones are often shorter.",
    "Adapters: activations of frozen weights were not compared with anything.",
    "Time is arithmetic over rates, with even routing: layers on one H200 took 1.4 to 3.2 times as long; "
    "no job of several GPUs was timed.",
)
OFFLOAD = (
    "parallel.cpu_offload: copies to and from the host, and the optimizer on its processor, are not in the time; "
    "whether the host's memory holds the pieces is not asked."
)


@dataclass(frozen=True)
class Money:
    """What a budget of tokens takes."""

    tokens: float
    price: float
    """Of a GPU's hour."""


@dataclass(frozen=True)
class PlanReport:
    """The answer of `seektune plan`."""

    layout: Layout
    cluster: Cluster
    ranks: tuple[RankMemory, ...]
    """All processes, or the first and the last of each stage of many."""
    firsts: tuple[RankMemory, ...]
    """The first process of each stage, which holds the most of it."""
    time: StepTime
    money: Money | None
    others: tuple[Candidate, ...] = ()
    """Layouts that a search found, the fastest first."""

    @property
    def fullest(self) -> RankMemory:
        """The process that decides."""
        return fullest(self.firsts)

    def verdict(self) -> tuple[bool, str]:
        """Whether the upper bound fits, and a sentence with the rank and by how much."""
        most = self.fullest
        memory = self.cluster.memory
        low = most.lower["total"] / GIGA
        high = most.upper["total"] / GIGA
        where = f"rank {most.rank} needs {low:.1f} to {high:.1f} GB of {memory / GIGA:.0f}"
        if elsewhere := most.upper["elsewhere"]:
            where += f" and {elsewhere / GIGA:.1f} GB of the host's memory"
        if high * GIGA <= memory:
            return True, f"fits: {where}, {memory / GIGA - high:.1f} GB to spare"
        if low * GIGA <= memory:
            return False, f"may not fit: {where}, up to {high - memory / GIGA:.1f} GB too much"
        return False, f"does not fit: {where}, at least {low - memory / GIGA:.1f} GB too much"

    def assumptions(self) -> list[str]:
        """Every number that is not counted, with its reason."""
        numbers = [f"{name} = {each['value']:g}: {each['why']}" for name, each in facts()["assumed"].items()]
        gpu = facts()["gpus"].get(self.cluster.gpu, {})
        sources = [*gpu.get("read", []), *gpu.get("vendor", [])]
        rates = (
            f"{self.cluster.gpu}: {self.cluster.flops / 1e12:g} TFLOP/s bf16 dense, "
            f"{self.cluster.memory_rate / GIGA:g} GB/s of memory, {self.cluster.link / GIGA:g} GB/s to "
            f"{self.cluster.gpus_per_node - 1} others, {self.cluster.network / GIGA:g} GB/s beyond, one way"
        )
        offload = [OFFLOAD] if self.layout.job.parallel.cpu_offload else []
        return [*ESTIMATE, *offload, *numbers, rates + (f" ({'; '.join(sources)})" if sources else "")]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: bytes, seconds."""
        fits, sentence = self.verdict()
        time = self.time
        plan = self.layout.dims
        return {
            "fits": fits,
            "verdict": sentence,
            "cluster": asdict(self.cluster),
            "layout": {
                "plan": asdict(plan),
                "stages": self.layout.stages,
                "micro_batches": self.layout.micro_batches,
                "rows": self.layout.rows_at_a_time,
                "length": self.layout.length,
                "parallel": self.layout.job.parallel.model_dump(mode="json"),
            },
            "ranks": [_rank(each) for each in self.ranks],
            "exact": list(EXACT),
            "meanings": {formula.name: formula.meaning for formula in FORMULAS if formula.meaning},
            "time": {
                "seconds": time.seconds,
                "tokens_per_s": time.tokens_per_s,
                "mfu": time.mfu(self.cluster),
                "arithmetic": time.arithmetic,
                "memory": time.memory,
                "communication": time.communication,
                "waiting": time.waiting,
                "optimizer": time.optimizer,
                "tokens": time.tokens,
            },
            "budget": self.budget(),
            "others": [_candidate(each) for each in self.others],
            "assumptions": self.assumptions(),
        }

    def budget(self) -> dict[str, float] | None:
        """Days and cost of the tokens that were asked about."""
        if self.money is None:
            return None
        tokens = self.money.tokens
        price = self.money.price
        cost = self.time.cost(tokens, price, self.cluster.gpus)
        return {"tokens": tokens, "days": self.time.days(tokens), "price": price, "cost": cost}


def make_report(
    layout: Layout, cluster: Cluster, money: Money | None = None, others: Sequence[Candidate] = ()
) -> PlanReport:
    """Plan one layout on one cluster."""
    world = layout.dims.world
    size = layout.dims.stage_size
    listed = (
        range(world) if world <= EVERY_RANK else sorted({r for b in range(0, world, size) for r in (b, b + size - 1)})
    )
    firsts = first_ranks(layout)
    ranks = tuple(rank_memory(layout, rank) for rank in listed)
    return PlanReport(layout, cluster, ranks, tuple(firsts), step_time(layout, cluster, firsts), money, tuple(others))


def _rank(memory: RankMemory) -> dict[str, Any]:
    return {
        "rank": memory.rank,
        "parameters": round(memory.upper["parameters"]),
        "lower": {name: round(memory.lower[name]) for name in (*BARS, "total")},
        "upper": {name: round(memory.upper[name]) for name in (*BARS, "total")},
    }


def _candidate(found: Candidate) -> dict[str, Any]:
    return {
        "layout": str(found.layout),
        "overrides": overrides(found),
        "seconds": found.time.seconds,
        "tokens_per_s": found.time.tokens_per_s,
        "total": round(found.memory.upper["total"]),
    }


def overrides(found: Candidate) -> list[str]:
    """Words that give a recipe this layout."""
    parallel = found.parallel
    words = [f"--parallel.{key}={value}" for key, value in parallel.model_dump(mode="json").items()
             if key in ("pp_size", "ep_size", "cp_size", "dp_replicate", "recompute")]  # fmt: skip
    rows = found.layout.rows_at_a_time
    if parallel.pp_size == 1:
        return [*words, f"--batch.micro_size={rows}"]
    schedule = f"--parallel.pipeline.schedule={parallel.pipeline.schedule}"
    return [*words, schedule, f"--parallel.pipeline.microbatch={rows}"]
