"""The option `train --dry-run`: memory and communication of chosen ranks of a job of any size, without running it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from seektune.io.console import counted, many, say, size
from seektune.model.config import DeepseekV4Config
from seektune.parallel.config import ParallelConfig
from seektune.parallel.dims import ParallelDims, make_dims
from seektune.parallel.layer_split import bubble, count_stages
from seektune.parallel.micro_batches import micro_batch_rows
from seektune.parallel.simulate.comm_trace import Flow
from seektune.planner.report import FROZEN_MODELS
from seektune.recipe.recipe import Recipe
from seektune.run.build import check_recipe_optimizer, meta_model
from seektune.workflows.dry_run_rank import DryStep, RankDryRun, StageContents, dry_run_rank

NOTES = """Counted in one step of the real code on tensors without memory: weights, buffers (routing tables and biases),
gradients as the optimizer reads them, its moments and masters; collectives and their payload. Computed: gathered (whole
weights in addition to the shards during a step), whole gradients (before their reduction), sent (ring algorithms), idle
time. Assumed: full rows, all taught; even routing. Missing: activations, and buffers of torch and NCCL."""

HELD = ("weights", "buffers", "gradients", "moments", "master", "total")
HEAD = ("rank", "parameters", *HELD, "gathered", "whole gradients")
FLOWS = ("collective", "axis", "processes", "count", "payload", "sent")
"""Columns."""


@dataclass(frozen=True)
class DryRun:
    """The result of a dry run."""

    dims: ParallelDims
    schedule: str | None
    """None without a pipeline."""
    stages: int
    step: DryStep
    waiting: float
    """Share of a step for which a process of the pipeline is idle; computed, see `parallel.layer_split.bubble`."""
    ranks: tuple[RankDryRun, ...]
    seconds: float
    not_counted: tuple[str, ...] = ()
    """Lines about what this job holds besides, such as a teacher."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON; all sizes in bytes."""
        return {
            "world": self.dims.world,
            "dims": asdict(self.dims),
            "pipeline": {"schedule": self.schedule, "stages": self.stages, "waiting": self.waiting},
            "step": asdict(self.step),
            "ranks": [rank.to_dict() for rank in self.ranks],
            "seconds": self.seconds,
            "not_counted": list(self.not_counted),
        }


def dry_run(recipe: Recipe, world: int, ranks: Sequence[int], as_json: bool) -> None:
    """Print what `ranks` of `world` processes hold and send; by default the first rank of each pipeline stage.

    Needs neither weights nor a network, and writes nothing.

    Raises:
        ValueError: the architecture is not known without the network, a rank does not exist, or the recipe does not fit
            so many processes.
    """
    answer = take_dry_run(recipe, world, ranks)
    if as_json:
        say(json.dumps(answer.to_dict(), indent=2))
        return
    for line in _lines(answer):
        say(line)


def take_dry_run(recipe: Recipe, world: int, ranks: Sequence[int]) -> DryRun:
    """The result of `dry_run` as an object."""
    began = perf_counter()
    config = recipe.model.architecture()
    if config is None:
        raise ValueError(
            f"a dry run does not use the network, so the architecture of {recipe.model.weights} is unknown; add "
            "--model.preset=flash or pro"
        )
    check_recipe_optimizer(recipe, lambda: meta_model(recipe, config))
    dims = make_dims(recipe.parallel, world, config)
    chosen = list(ranks) or list(range(0, world, dims.stage_size))
    if wrong := [rank for rank in chosen if not 0 <= rank < world]:
        raise ValueError(f"--ranks names {wrong[0]}, but {world} processes count from 0 to {world - 1}")
    step = _step(recipe, dims, config)
    stages = _stages(recipe.parallel, config)
    schedule = recipe.parallel.pipeline.schedule if dims.pp_size > 1 else None
    waiting = bubble(schedule, dims.pp_size, stages, step.micro_batches) if schedule else 0.0
    found = tuple(dry_run_rank(recipe, config, dims, step, rank) for rank in chosen)
    left_out = (FROZEN_MODELS,) if recipe.has_frozen_models else ()
    return DryRun(dims, schedule, stages, step, waiting, found, perf_counter() - began, left_out)


def _step(recipe: Recipe, dims: ParallelDims, config: DeepseekV4Config) -> DryStep:
    """A step's micro-batches, with rows of the maximum length, in the stage that needs most memory."""
    batch = recipe.batch.largest_stage()
    rows = micro_batch_rows(dims, recipe.parallel, config, batch.global_size, batch.micro_size)
    length = -(-batch.length // dims.cp_size) * dims.cp_size
    return DryStep(batch.global_size // dims.data_size // rows, rows, length)


def _stages(parallel: ParallelConfig, config: DeepseekV4Config) -> int:
    if parallel.pp_size == 1:
        return 1
    return count_stages(parallel.pipeline, parallel.pp_size, config.num_hidden_layers, config.mtp_layers)


def _lines(answer: DryRun) -> Iterator[str]:
    dims = answer.dims
    step = answer.step
    yield f"{dims.world} processes: {dims}"
    if answer.schedule:
        waits = f"each process waits {answer.waiting:.0%} of a step"
        yield f"pipeline: {answer.schedule}, {answer.stages} stages, {waits}"
    rows = f"{counted(step.rows, 'row')} of {step.length} tokens"
    yield f"a step: {step.micro_batches} times {rows} on each process"
    yield ""
    yield from _table([HEAD, *(_numbers(rank) for rank in answer.ranks)])
    for rank in answer.ranks:
        yield ""
        where = ", ".join(f"{axis} {number}" for axis, number in asdict(rank.place).items())
        yield f"rank {rank.rank} ({where})"
        for stage in rank.stages:
            yield f"  stage {stage.number}: {_contents(stage)}"
        held = rank.bytes
        yield (
            f"  weights: {size(held.experts)} of routed experts, {size(held.weights - held.experts)} of all else; "
            f"{size(held.frozen)} of them frozen"
        )
        if rank.rounded_weights:
            yield f"  rounded copies of weights, from forward to backward: {size(rank.rounded_weights)}"
        yield from (f"  {line}" for line in _table([FLOWS, *map(_flow, rank.collectives)]))
    yield ""
    yield from NOTES.splitlines()
    yield from answer.not_counted


def _numbers(rank: RankDryRun) -> tuple[str, ...]:
    held = rank.to_dict()["bytes"]
    during = rank.gathered_weights, rank.whole_gradients
    return str(rank.rank), many(rank.parameters), *(size(held[what]) for what in HELD), *map(size, during)


def _flow(flow: Flow) -> tuple[str, ...]:
    return flow.kind, flow.axis, str(flow.processes), f"{flow.count:,}", size(flow.bytes), size(flow.sent)


def _contents(stage: StageContents) -> str:
    layers = f"layers {stage.layers[0]} to {stage.layers[-1]}" if stage.layers else "no layers"
    kinds = ", ".join(f"{number} {kind}" for kind, number in stage.attention.items())
    ends = ["embedding"] * stage.embedding + [f"{layers} ({kinds}; {counted(stage.hash_gates, 'hash gate')})"]
    return ", ".join(ends + ["head"] * stage.head + ["MTP block"] * stage.mtp)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Right-aligned columns under their names."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
