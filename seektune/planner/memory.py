"""Memory of each process: the tables and numbers that the formulas need, and their results."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from seektune.model.dspark_config import CHUNK
from seektune.parallel.matrix_plan import ROUND_ELEMENTS
from seektune.planner.expressions import Number, Row, Tables, evaluate
from seektune.planner.formulas import HELD, MADE
from seektune.planner.hardware import GIGA, assumed
from seektune.planner.job import RECOMPUTE, Layout, StageWeights, TrainingJob, in_flight

HELD_TABLES = ("tensors", "units", "teacher", "teacher_units")
"""Tables of the formulas that depend on the mesh alone."""
LOWER = "lower"
UPPER = "upper"
Numbers = dict[str, Number]


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one process, by part."""

    rank: int
    given: Numbers
    """What the formulas of `MADE` read besides the assumptions of a bound."""
    rows: Tables
    factors: Mapping[str, float]
    """Assumed values, by name."""

    @cached_property
    def lower(self) -> Numbers:
        """With even routing and the smallest overheads."""
        return evaluate(MADE, {**self.given, **bounds(LOWER, self.factors)}, self.rows)

    @cached_property
    def upper(self) -> Numbers:
        """With skewed routing and the largest overheads."""
        return evaluate(MADE, {**self.given, **bounds(UPPER, self.factors)}, self.rows)

    def spare(self, memory: int) -> int:
        """Bytes of a GPU that the upper bound leaves; negative where it does not fit."""
        return memory - round(self.upper["total"])


@dataclass(frozen=True)
class ProcessTables:
    """The tables and numbers of a pipeline rank; all processes of its stage have the same."""

    rows: Tables
    numbers: Numbers


def rank_memory(layout: Layout, rank: int, factors: Mapping[str, float] | None = None) -> RankMemory:
    """Lower and upper bound of one process's memory, with these assumed values, or those of hardware.json."""
    tables = process_tables(layout, layout.dims.coords(rank).pp)
    held = _held(layout, rank, tables)
    known = assumed() if factors is None else factors
    return RankMemory(rank, {**held, **tables.numbers}, tables.rows, known)


def first_ranks(layout: Layout, factors: Mapping[str, float] | None = None) -> list[RankMemory]:
    """Memory of the first process of each pipeline rank, which holds the most: its shards are the longest."""
    return [rank_memory(layout, process * layout.dims.stage_size, factors) for process in range(layout.pp)]


def peak_rank(ranks: Sequence[RankMemory]) -> RankMemory:
    """The process with the largest upper bound."""
    return max(ranks, key=lambda memory: memory.upper["total"])


def _held(layout: Layout, rank: int, tables: ProcessTables) -> Numbers:
    """Results of the `HELD` formulas, cached because a search evaluates them repeatedly."""
    given = {**model_numbers(layout.job), **layout_numbers(layout), "rank": rank}
    key = (layout.dims, layout.stages, layout.job.parallel.pipeline.schedule, layout.job.parallel.reshard, rank)
    known = layout.job.weights.cache
    if key not in known:
        known[key] = evaluate(HELD, given, tables.rows)
    return {**known[key], **given}


def bounds(which: str, factors: Mapping[str, float]) -> Numbers:
    """Assumed routing and overheads of the lower or upper bound."""
    if which == UPPER:
        names = {"skew": "skew", "nccl_bytes": "nccl_mb", "allocator_share": "allocator", "context": "context_gb"}
        numbers = {name: factors[key] for name, key in names.items()} | {"twice": 1.0}
    else:
        numbers = {"skew": 1.0, "allocator_share": 0.0, "twice": 0.0}
        # a cluster file may set the upper bound alone
        numbers |= {"nccl_bytes": min(factors["nccl_least_mb"], factors["nccl_mb"])}
        numbers |= {"context": min(factors["context_least_gb"], factors["context_gb"])}
    return numbers | {"nccl_bytes": numbers["nccl_bytes"] * 1e6, "context": numbers["context"] * GIGA}


def model_numbers(job: TrainingJob) -> Numbers:
    """Sizes of the model and the recipe, by their names in formulas."""
    config = job.config
    taught = job.teacher_model
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
        "drafter": int(job.drafter),
        "targets": len(config.dspark_target_layer_ids or ()),
        "draft_stages": config.dspark_stages,
        "block": config.dspark_block_size or 0,
        "markov": config.dspark_markov_rank or 0,
        "indexers": int(job.indexers != "frozen"),
        "warmup": int(job.indexers == "warmup"),
        "offload": int(job.parallel.cpu_offload),
        "qat": int(job.qat != "none"),
        "fp4": int(job.qat == "released"),
        "round_elements": ROUND_ELEMENTS,
        "teacher_width": 0 if taught is None or not taught.distilled else taught.config.hidden_size,
        "teacher_streamed": int(taught is not None and taught.streamed),
        "learns_head": int(job.weights.learns("head.weight")),
    }


def layout_numbers(layout: Layout) -> Numbers:
    """Sizes of the mesh and of a micro-batch."""
    dims = layout.dims
    # groups of the world, pipeline, experts, context, dense, dense fp32, expert shards, and both kinds of replicas
    sizes = (dims.world, dims.pp_size, dims.ep_size, dims.cp_size, dims.fsdp_size, dims.fsdp_size, dims.expert_shard,
             dims.dp_replicate, dims.expert_replicate)  # fmt: skip
    return {
        "gpus": dims.world,
        "pp": dims.pp_size,
        "ep": dims.ep_size,
        "cp": dims.cp_size,
        "dp_shard": dims.dp_shard,
        "rows_at_a_time": layout.rows_at_a_time,
        "micro_batches": layout.micro_batches,
        "length": layout.job.length,
        "drafted": _drafted(layout),
        "communicators": sum(size > 1 for size in sizes),
    }


def _drafted(layout: Layout) -> int:
    """Tokens of the drafts that exist at a time."""
    anchors = min(layout.job.anchors, CHUNK, layout.rows_at_a_time * (layout.length - 1))
    return anchors * (layout.job.config.dspark_block_size or 0)


def process_tables(layout: Layout, process: int) -> ProcessTables:
    """The tables and numbers of a pipeline rank, as the formulas read them."""
    job = layout.job
    flight = in_flight(layout, process)
    held = [(stage, layout.layers(stage)) for stage in layout.stages_of(process)]
    parts: list[StageWeights] = []
    blocks: list[Row] = []
    for stage, layers in held:
        last = stage == layout.stages - 1
        parts.append(job.weights.part(layers, stage == 0, last))
        blocks += [{"drafts": 0, **row, "flight": flight[stage]} for row in _blocks(job, layers, last)]
    if job.drafter:
        blocks.append(_draft_row(layout))
    head = any(stage == layout.stages - 1 for stage, _ in held)
    units = [unit for part in parts for unit in part.units]
    numbers: Numbers = {
        "head": int(head),
        "units_count": len(units),
        "flight_most": max(flight.values()),
        "arrivals": sum(stage > 0 for stage in flight),
        "departures": sum(stage < layout.stages - 1 for stage in flight),
        "leaving": sum(many for stage, many in flight.items() if stage < layout.stages - 1),
        **_answer_numbers(layout, [layer for _, layers in held for layer in layers]),
    }
    tensors = [row for part in parts for row in part.tensors]
    other = job.teacher_model
    taught = [] if other is None else layout.parts_of(other.config, other.weights, process)
    teacher = [row for part in taught for row in part.tensors]
    teacher_units = [row for part in taught for row in part.units]
    found = (tensors, units, teacher, teacher_units)
    return ProcessTables({**dict(zip(HELD_TABLES, found, strict=True)), "blocks": blocks}, numbers)


def _draft_row(layout: Layout) -> Row:
    """The DSpark stages as blocks that read drafts."""
    config = layout.job.config
    tokens = _drafted(layout)
    pairs = tokens * config.num_experts_per_tok
    shape = {"ratio": 0, "hashed": 0, "mtp": 0, "count": config.dspark_stages, "flight": 1}
    return {**shape, "drafts": 1, "N": tokens, "P": pairs, "Q": pairs}


def _answer_numbers(layout: Layout, layers: Sequence[int]) -> Numbers:
    """The answers that a process with these layers samples at a time, and the cache of one of them."""
    answers = layout.job.answers
    if answers is None:
        return {"answers_here": 0, "answer_fixed": 0, "answer_token": 0}
    return {
        "answers_here": -(-answers.together // layout.dims.stage_size),
        "answer_fixed": sum(answers.fixed[layer] for layer in layers),
        "answer_token": sum(answers.per_token[layer] for layer in layers),
    }


def _blocks(job: TrainingJob, layers: range, last: bool) -> list[Row]:
    """One row per group of equal blocks; the MTP block last."""
    config = job.config
    counts = Counter((config.ratio(layer), layer < config.num_hash_layers) for layer in layers)
    rows: list[Row] = [
        {"ratio": ratio, "hashed": int(hashed), "mtp": 0, "count": count} for (ratio, hashed), count in counts.items()
    ]
    if last and job.mtp:
        rows.append({"ratio": 0, "hashed": 0, "mtp": 1, "count": 1})
    return rows
