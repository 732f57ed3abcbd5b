"""A plan's results: verdict, memory of every process, time of a step, and the assumptions."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from seektune.planner.formulas import BARS, EXACT, FORMULAS
from seektune.planner.hardware import GIGA, Cluster, hardware_data
from seektune.planner.job import Layout
from seektune.planner.memory import RankMemory, first_ranks, peak_rank, rank_memory
from seektune.planner.search import Candidate
from seektune.planner.time import StepTime, step_time

MAX_LISTED_RANKS = 512
"""With more processes, only the first and the last of each stage are listed."""
ESTIMATE = (
    "Counted: weights, buffers, gradients, moments, masters of every process; they equal the dry run's.",
    "Computed from shapes: gathered weights, whole gradients, FLOPs, messages.",
    "Estimated: activations, from what the kernels save; compared with tensors of CPU runs only (bench/plan.json), "
    "never with a GPU. Rows are assumed full; real rows are often shorter.",
    "Adapters: activations of frozen weights were not compared with a measurement.",
    "Time is operations over rates, with even routing: layers on one H200 took 1.4 to 3.2 times as long; "
    "no multi-GPU job was timed.",
)
OFFLOAD = (
    "parallel.cpu_offload: the time does not include copies to and from the host or the optimizer on the CPU; "
    "whether the shards fit the host's memory is not checked."
)


@dataclass(frozen=True)
class Budget:
    """A number of tokens to train on, and a price."""

    tokens: float
    price: float
    """Per GPU-hour."""


DRAFTER = (
    "Drafter: the backbone runs forward only and keeps nothing for backward. Drafts from at most 32 anchors exist at a "
    "time, forward and backward: memory does not grow with train.drafter_anchors. Between processes the gradients of "
    "all stages are reduced together, in fp32, at the end of backward: those copies are among FSDP2's buffers. Before "
    "the first step, without gradients, the model answers prompts: what FSDP cuts is then whole on each process."
)
ROLLOUTS = (
    "Rollouts: the time of a step does not include its rollout, which are sampling, rewards and a forward pass that "
    "measures the mismatch. The KV caches of {answers} answers of {length:,} tokens that a process samples at a time, "
    "up to {gigabytes:.2g} GB, are there while nothing is trained: of them, rollout_work is what exceeds activations, "
    "losses and what else a step makes. The ids and numbers of the answers, in the host's memory, are not counted."
)


INDEXERS = (
    "Indexers: their loss, recall and gradients are counted; their products are those of eager torch, a chunk of "
    "queries at a time, whose rate was not measured on a GPU."
)
FROZEN_MODELS = (
    "Teachers and reference: the memory of other checkpoints than the model is not counted (seektune plan counts that "
    "of one folder on this machine), nor what they send. Each process also holds its part of their frozen weights on "
    "the same layout, the last pipeline stage each teacher's whole head."
)
COUNTED_TEACHER = (
    "Teacher or reference: weights, and of a teacher its head and the hidden states of a step, are counted; what its "
    "forward pass gathers and makes, before the model's own, is not. Its time is that of a forward pass of the model."
)


@dataclass(frozen=True)
class PlanReport:
    """The result of `seektune plan`."""

    layout: Layout
    cluster: Cluster
    ranks: tuple[RankMemory, ...]
    """All processes, or the first and the last of each stage."""
    firsts: tuple[RankMemory, ...]
    """The first process of each stage, which holds the most."""
    time: StepTime
    budget: Budget | None
    others: tuple[Candidate, ...] = ()
    """Layouts found by a search, the fastest first."""

    @property
    def peak_rank(self) -> RankMemory:
        """The process with the largest upper bound."""
        return peak_rank(self.firsts)

    def verdict(self) -> tuple[bool, str]:
        """Whether the upper bound fits, and a message with the rank and the margin."""
        peak = self.peak_rank
        memory = self.cluster.memory
        low = peak.lower["total"] / GIGA
        high = peak.upper["total"] / GIGA
        where = f"rank {peak.rank} needs {low:.1f} to {high:.1f} GB of {memory / GIGA:.0f}"
        if self.layout.job.frozen_models and self.layout.job.teacher_model is None:
            where += " without other checkpoints"
        if on_host := peak.upper["on_host"]:
            where += f" and {on_host / GIGA:.1f} GB of the host's memory"
        if high * GIGA <= memory:
            return True, f"fits: {where}, {memory / GIGA - high:.1f} GB to spare"
        if low * GIGA <= memory:
            return False, f"may not fit: {where}, up to {high - memory / GIGA:.1f} GB too much"
        return False, f"does not fit: {where}, at least {low - memory / GIGA:.1f} GB too much"

    def assumptions(self) -> list[str]:
        """Every assumed number, with its reason."""
        numbers = [
            f"{name} = {self.cluster.factors[name]:.4g}: {each['why']}"
            + (
                f" (set for this plan; assumed otherwise: {each['value']:g})"
                if name in dict(self.cluster.assumed)
                else ""
            )
            for name, each in hardware_data()["assumed"].items()
        ]
        gpu = hardware_data()["gpus"].get(self.cluster.gpu, {})
        sources = [*gpu.get("read", []), *gpu.get("vendor", [])]
        rates = (
            f"{self.cluster.gpu}: {self.cluster.flops / 1e12:g} TFLOP/s bf16 dense, "
            f"{self.cluster.memory_rate / GIGA:g} GB/s memory bandwidth, {self.cluster.link / GIGA:g} GB/s to "
            f"{self.cluster.gpus_per_node - 1} others in the node, {self.cluster.network / GIGA:g} GB/s between nodes, "
            "per direction"
        )
        job = self.layout.job
        special = {
            OFFLOAD: job.parallel.cpu_offload,
            DRAFTER: job.drafter,
            FROZEN_MODELS: job.frozen_models and job.teacher_model is None,
            COUNTED_TEACHER: job.teacher_model is not None,
            self._rollouts(): job.answers is not None,
            INDEXERS: job.indexers != "frozen",
        }
        lines = [*ESTIMATE, *(line for line, holds in special.items() if holds), *numbers]
        return [*lines, rates + (f" ({'; '.join(sources)})" if sources else "")]

    def _rollouts(self) -> str:
        most = max(self.firsts, key=lambda memory: memory.upper["rollout_caches"])
        return ROLLOUTS.format(
            answers=most.given["answers_here"],
            length=self.layout.length,
            gigabytes=most.upper["rollout_caches"] / GIGA,
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan for JSON, in bytes and seconds."""
        fits, verdict = self.verdict()
        time = self.time
        return {
            "fits": fits,
            "verdict": verdict,
            "cluster": asdict(self.cluster),
            "layout": {
                "plan": asdict(self.layout.dims),
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
                "bubble": time.bubble,
                "optimizer": time.optimizer,
                "tokens": time.tokens,
            },
            "budget": self.budget_cost(),
            "others": [_candidate(each) for each in self.others],
            "assumptions": self.assumptions(),
        }

    def budget_cost(self) -> dict[str, float] | None:
        """Days and cost of the budget; None without one."""
        if self.budget is None:
            return None
        tokens = self.budget.tokens
        price = self.budget.price
        cost = self.time.cost(tokens, price, self.cluster.gpus)
        return {"tokens": tokens, "days": self.time.days(tokens), "price": price, "cost": cost}


def make_report(
    layout: Layout, cluster: Cluster, budget: Budget | None = None, others: Sequence[Candidate] = ()
) -> PlanReport:
    """Plan a layout on a cluster."""
    world = layout.dims.world
    size = layout.dims.stage_size
    listed = (
        range(world)
        if world <= MAX_LISTED_RANKS
        else sorted({r for b in range(0, world, size) for r in (b, b + size - 1)})
    )
    firsts = first_ranks(layout, cluster.factors)
    ranks = tuple(rank_memory(layout, rank, cluster.factors) for rank in listed)
    return PlanReport(layout, cluster, ranks, tuple(firsts), step_time(layout, cluster, firsts), budget, tuple(others))


def _rank(memory: RankMemory) -> dict[str, Any]:
    return {
        "rank": memory.rank,
        "parameters": round(memory.upper["parameters"]),
        "lower": {name: round(memory.lower[name]) for name in (*BARS, "total")},
        "upper": {name: round(memory.upper[name]) for name in (*BARS, "total")},
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "layout": str(candidate.layout),
        "overrides": overrides(candidate),
        "seconds": candidate.time.seconds,
        "tokens_per_s": candidate.time.tokens_per_s,
        "total": round(candidate.memory.upper["total"]),
    }


def overrides(candidate: Candidate) -> list[str]:
    """The command-line overrides that give a recipe this layout."""
    parallel = candidate.parallel
    words = [f"--parallel.{key}={value}" for key, value in parallel.model_dump(mode="json").items()
             if key in ("pp_size", "ep_size", "cp_size", "dp_replicate", "recompute")]  # fmt: skip
    words += [f"--parallel.{key}={default}" for key, default in parallel.without_effect().items()]
    rows = candidate.layout.rows_at_a_time
    if parallel.pp_size == 1:
        return [*words, f"--batch.micro_size={rows}"]
    schedule = f"--parallel.pipeline.schedule={parallel.pipeline.schedule}"
    return [*words, schedule, f"--parallel.pipeline.microbatch={rows}"]
