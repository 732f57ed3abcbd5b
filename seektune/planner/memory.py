"""What each process holds: the tables and numbers that the formulas need, and their answers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from seektune.planner.expressions import Number, Row, evaluate
from seektune.planner.formulas import HELD, MADE
from seektune.planner.hardware import GIGA, assumed
from seektune.planner.job import RECOMPUTE, Layout, StageWeights, TrainingJob, in_flight

LOWER = "lower"
UPPER = "upper"
Numbers = dict[str, Number]


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one process, by part."""

    rank: int
    lower: Numbers
    """All formulas with even routing and least overheads."""
    upper: Numbers
    """With skewed routing and the overheads of hardware.json."""

    def spare(self, memory: int) -> int:
        """Bytes of a GPU that the upper bound leaves; negative where it does not fit."""
        return memory - round(self.upper["total"])


@dataclass(frozen=True)
class ProcessTables:
    """The tables of a process of the pipeline, and its own numbers; all processes of its stage have the same."""

    rows: dict[str, list[Row]]
    numbers: Numbers


def rank_memory(layout: Layout, rank: int) -> RankMemory:
    """What one process holds, between two bounds."""
    tables = process_tables(layout, layout.dims.coords(rank).pp)
    held = _held(layout, rank, tables)
    lower, upper = (evaluate(MADE, {**held, **tables.numbers, **bounds(each)}, tables.rows) for each in (LOWER, UPPER))
    return RankMemory(rank, lower, upper)


def first_ranks(layout: Layout) -> list[RankMemory]:
    """The first process of each of the pipeline's, which holds the most: its pieces are the longest."""
    return [rank_memory(layout, process * layout.dims.stage_size) for process in range(layout.pp)]


def fullest(ranks: Sequence[RankMemory]) -> RankMemory:
    """The process that holds most."""
    return max(ranks, key=lambda found: found.upper["total"])


def _held(layout: Layout, rank: int, tables: ProcessTables) -> Numbers:
    """The formulas that follow from the mesh; their answers are kept, as a search asks for them again and again."""
    given = {**model_numbers(layout.job), **layout_numbers(layout), "rank": rank}
    key = (layout.dims, layout.stages, layout.job.parallel.pipeline.schedule, layout.job.parallel.reshard, rank)
    known = layout.job.weights.held
    if key not in known:
        known[key] = evaluate(HELD, given, tables.rows)
    return {**known[key], **given}


def bounds(which: str) -> Numbers:
    """What is assumed about routing and overheads."""
    known = assumed()
    if which == UPPER:
        names = {"skew": "skew", "nccl_bytes": "nccl_mb", "allocator_share": "allocator", "context": "context_gb"}
        found = {name: known[key] for name, key in names.items()} | {"twice": 1.0}
    else:
        found = {"skew": 1.0, "allocator_share": 0.0, "twice": 0.0}
        found |= {"nccl_bytes": known["nccl_least_mb"], "context": known["context_least_gb"]}
    return found | {"nccl_bytes": found["nccl_bytes"] * 1e6, "context": found["context"] * GIGA}


def model_numbers(job: TrainingJob) -> Numbers:
    """Sizes of the model and the recipe by their letters."""
    config = job.config
    return {
        "D": config.hidden_size,
        "S": config.hc_mult,
        "H": config.num_attention_heads,
        "C": config.head_dim,
        "R": config.q_lora_rank,
        "G": config.o_groups,
        "O": config.o_lora_rank,
        "r": config.qk_rope_head_dim,
        "E": config.n_routed_experts,
        "K": config.num_experts_per_tok,
        "F": config.moe_intermediate_size,
        "V": config.vocab_size,
        "Hi": config.index_n_heads,
        "I": config.index_head_dim,
        "topk": config.index_topk,
        "window": config.sliding_window,
        "w": job.itemsize,
        "masters": int(job.masters),
        "mtp_runs": int(job.mtp),
        "recompute": RECOMPUTE[job.parallel.recompute],
        "reshard": int(job.parallel.reshard),
        "lora_scale": 1,
        "frozen": int(job.lora_rank > 0),
        "streamed": int(job.streamed),
        "offload": int(job.parallel.cpu_offload),
        "learns_head": int(job.weights.learns("head.weight")),
    }


def layout_numbers(layout: Layout) -> Numbers:
    """Sizes of the mesh and of a micro-batch."""
    plan = layout.dims
    # pipeline, experts, context, dense, dense fp32, expert pieces, their copies; the world's first
    sizes = (plan.world, plan.pp_size, plan.ep_size, plan.cp_size, plan.fsdp_size, plan.fsdp_size, plan.expert_shard,
             plan.dp_replicate, plan.expert_replicate)  # fmt: skip
    return {
        "gpus": plan.world,
        "pp": plan.pp_size,
        "ep": plan.ep_size,
        "cp": plan.cp_size,
        "dp_shard": plan.dp_shard,
        "rows_at_a_time": layout.rows_at_a_time,
        "micro_batches": layout.micro_batches,
        "length": layout.job.length,
        "communicators": sum(size > 1 for size in sizes),
    }


def process_tables(layout: Layout, process: int) -> ProcessTables:
    """What a process of the pipeline holds, as the formulas read it."""
    job = layout.job
    flight = in_flight(layout, process)
    held = [(stage, layout.layers(stage)) for stage in layout.stages_of(process)]
    parts: list[StageWeights] = []
    blocks: list[Row] = []
    for stage, layers in held:
        last = stage == layout.stages - 1
        parts.append(job.weights.part(layers, stage == 0, last))
        blocks += [{**row, "flight": flight[stage]} for row in _blocks(job, layers, last)]
    head = any(stage == layout.stages - 1 for stage, _ in held)
    units = [unit for part in parts for unit in part.units]
    numbers: Numbers = {
        "head": int(head),
        "units_count": len(units),
        "arrivals": sum(stage > 0 for stage in flight),
        "departures": sum(stage < layout.stages - 1 for stage in flight),
        "leaving": sum(many for stage, many in flight.items() if stage < layout.stages - 1),
    }
    tensors = [row for part in parts for row in part.tensors]
    return ProcessTables({"tensors": tensors, "units": units, "blocks": blocks}, numbers)


def _blocks(job: TrainingJob, layers: range, last: bool) -> list[Row]:
    """Rows of equal blocks; the MTP block last."""
    config = job.config
    alike = Counter((config.ratio(layer), layer < config.num_hash_layers) for layer in layers)
    rows: list[Row] = [
        {"ratio": ratio, "hashed": int(hashed), "mtp": 0, "count": count} for (ratio, hashed), count in alike.items()
    ]
    if last and job.mtp:
        rows.append({"ratio": 0, "hashed": 0, "mtp": 1, "count": 1})
    return rows
