"""Dry run of one rank of a job: builds its real shards on the meta device, takes a step, and counts bytes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from seektune.checkpoint.lowbit import value_counts
from seektune.data.step_data import StepData
from seektune.model.config import ATTENTION_NAMES, DeepseekV4Config
from seektune.model.device import DTYPES
from seektune.model.dspark import DSparkStage
from seektune.model.fake_quantized import rounded_parameters
from seektune.model.gate import HashGate
from seektune.model.step_loss import StepLoss
from seektune.parallel.dims import ParallelDims, RankCoords
from seektune.parallel.mesh import Mesh
from seektune.parallel.model import ParallelModel
from seektune.parallel.parallelize import Prepare, parallelize
from seektune.parallel.placement import is_stacked, local
from seektune.parallel.reference import ModelReference
from seektune.parallel.simulate.comm_trace import CommTrace, Flow
from seektune.parallel.simulate.even_routing import FirstDrafts, assume_even_routing
from seektune.parallel.simulate.fake_backend import fake_process_group, meta_tensors
from seektune.parallel.stage import Stage
from seektune.recipe.recipe import Recipe
from seektune.run.build import preparation
from seektune.sequence import Batch
from seektune.train.gradient import accumulate_in_fp32, clip, shard_norms, squared_norm
from seektune.train.optim.build import build_optimizer
from seektune.train.optim.master import MasterOptimizer
from seektune.train.step import StepObjective, make_step_loss


@dataclass(frozen=True)
class DryStep:
    """The rows of one step: on every process `micro_batches` of `rows` rows, `length` tokens in each."""

    micro_batches: int
    rows: int
    length: int

    def data(self, processes: int, device: str) -> StepData:
        """Full rows of one document, every token taught: those of one of `processes` data-parallel groups."""
        ones = torch.ones(self.rows, self.length, dtype=torch.int64, device=device)
        count = self.micro_batches * processes
        tokens = count * self.rows * self.length
        return StepData([Batch(ones, ones, ones)] * self.micro_batches, tokens - count * self.rows, tokens, count)


@dataclass(frozen=True)
class StageContents:
    """The contents of a pipeline stage."""

    number: int
    layers: tuple[int, ...]
    attention: dict[str, int]
    """Layers by type of attention, the MTP block included."""
    hash_gates: int
    embedding: bool
    head: bool
    mtp: bool


@dataclass(frozen=True)
class Bytes:
    """Bytes of one process's shards; the optimizer's step counters, 4 bytes per tensor, are left out."""

    weights: int
    experts: int
    """Of the weights, those of routed experts and their adapters."""
    frozen: int
    """Of the weights, those that are not trained."""
    buffers: int
    """Balancing biases and hash tables, whole on every process of a stage."""
    gradients: int
    """After the step's reduction, when the optimizer reads them."""
    moments: int
    master: int

    @property
    def optimizer(self) -> int:
        """Bytes of optimizer state."""
        return self.moments + self.master

    @property
    def total(self) -> int:
        """Bytes of everything that stays between forward passes, and of the gradients."""
        return self.weights + self.buffers + self.gradients + self.optimizer


@dataclass(frozen=True)
class RankDryRun:
    """What one process holds and sends."""

    rank: int
    place: RankCoords
    stages: tuple[StageContents, ...]
    parameters: int
    """Number of weights in this process's shards."""
    trainable: int
    expert_parameters: int
    bytes: Bytes
    gathered_weights: int
    """Bytes of whole weights that FSDP2 gathers in addition to the shards: of the largest block and the parameters
    outside the blocks, or of all if they stay until the step ends. Computed from shapes."""
    whole_gradients: int
    """Bytes of gradients before they are reduced: fp32 of all weights if micro-batches accumulate. Computed."""
    rounded_weights: int
    """Bytes of rounded copies of weights (`train.qat`) that exist from forward to backward: those of the largest block,
    or without recomputation of all blocks, for each micro-batch in flight. Computed from shapes."""
    collectives: tuple[Flow, ...]
    """Those of one step, the largest first."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        answer = asdict(self)
        answer["bytes"] |= {"optimizer": self.bytes.optimizer, "total": self.bytes.total}
        return answer


def dry_run_rank(recipe: Recipe, config: DeepseekV4Config, plan: ParallelDims, step: DryStep, rank: int) -> RankDryRun:
    """Build the model of `rank` with the code that training runs, take one step, and report bytes and collectives."""
    data = step.data(plan.data_size, "meta")
    section = recipe.train
    drafts = FirstDrafts(section.drafter_anchors, data.micro_batches, recipe.seed) if section.drafter else None
    target = StepObjective(drafts=drafts, indexers=section.indexer_stage)
    loss = make_step_loss(data, recipe.loss, config.mtp_layers > 0, target)
    prepare = _frozen_form(recipe, config)
    with fake_process_group(rank, plan.world):
        mesh = Mesh.of(plan, torch.device("cpu"), control="fake")
        traffic = CommTrace(mesh.axes)
        with meta_tensors(traffic.record):
            numbers = DTYPES[recipe.model.dtype], recipe.model.numerics
            warmup = section.indexer_stage == "warmup"
            model = parallelize(
                config, mesh, recipe.parallel, *numbers, prepare, drafter=section.drafter, indexers_alone=warmup
            )
            assume_even_routing(model, mesh)
            accumulate_in_fp32(model.parameters())
            optimizer = build_optimizer(model, recipe.optimizer, recipe.seed, mesh)
            batches = data.batches
            if recipe.switches_adapters_off:
                batches = [ModelReference(model).own(batch) for batch in batches]
            gradients = _take_step(model, optimizer, batches, loss, recipe.optimizer.max_grad_norm)
        rounded = _rounded(model, recipe.parallel.recompute != "none")
        return _report(model, optimizer, gradients, step, recipe.parallel.reshard, rounded, tuple(traffic.flows()))


def _frozen_form(recipe: Recipe, config: DeepseekV4Config) -> Prepare:
    """As in training, except that no weight is rounded for a merge, which reads values and changes no shape.

    Frozen weights have the formats of their folder, or of the release if it is not local.
    """
    shapes = recipe.model_copy(update={"lora": recipe.lora.model_copy(update={"merge_into": None})})
    weights = recipe.model.weights
    return preparation(shapes, config, Path(weights) if weights is not None and Path(weights).is_dir() else None)


def _take_step(
    model: ParallelModel, optimizer: MasterOptimizer, batches: Sequence[Batch], loss: StepLoss, max_norm: float | None
) -> int:
    """As `train.step`, without reading values; returns the bytes of gradients that the optimizer reads."""
    model.train(batches, loss, lambda phase: None)
    gradients = _size(local(p.grad) for p in model.parameters() if p.grad is not None)
    squared_norm(shard_norms(model.named_parameters(), model.mesh), model.mesh)
    if max_norm is not None:
        clip(model.parameters(), norm=2 * max_norm, max_norm=max_norm)
    optimizer.step()
    return gradients


def _report(
    model: ParallelModel,
    optimizer: MasterOptimizer,
    gradients: int,
    step: DryStep,
    reshard: bool,
    rounded: int,
    flows: tuple[Flow, ...],
) -> RankDryRun:
    parameters = dict(model.named_parameters())
    pieces = {name: piece.tensor for name, piece in model.shards().items()}
    weights = {name: piece for name, piece in pieces.items() if name in parameters}
    counts = value_counts(weights)
    states = optimizer.state.values()
    keeps = model.mesh.dims.pp_size > 1 or not reshard
    return RankDryRun(
        rank=model.mesh.rank,
        place=model.mesh.coords,
        stages=tuple(_contents(number, stage) for number, stage in sorted(model.stages.items())),
        parameters=sum(counts.values()),
        trainable=sum(number for name, number in counts.items() if parameters[name].requires_grad),
        expert_parameters=sum(number for name, number in counts.items() if is_stacked(name, weights[name])),
        bytes=Bytes(
            weights=_size(weights.values()),
            experts=_size(piece for name, piece in weights.items() if is_stacked(name, piece)),
            frozen=_size(piece for name, piece in weights.items() if not parameters[name].requires_grad),
            buffers=_size(pieces.values()) - _size(weights.values()),
            gradients=gradients,
            moments=_size(x for state in states for key, x in state.items() if key not in ("step", "master")),
            master=_size(state["master"] for state in states if "master" in state),
        ),
        gathered_weights=sum(_gathered(stage, keeps) for stage in model.stages.values()),
        whole_gradients=sum(_whole_gradients(stage, step) for stage in model.stages.values()),
        rounded_weights=rounded,
        collectives=flows,
    )


def _rounded(model: ParallelModel, recomputes: bool) -> int:
    """Bytes of the rounded copies of a process for one micro-batch."""
    blocks = [_size(rounded_parameters(block)) for stage in model.stages.values() for block in stage.blocks()]
    return max(blocks, default=0) if recomputes else sum(blocks)


def _contents(number: int, stage: Stage) -> StageContents:
    layers = [block.ffn.layer for block in stage.layers]
    kinds = Counter(ATTENTION_NAMES[block.attn.ratio] for block in stage.blocks())
    hashed = sum(isinstance(gate, HashGate) for gate in stage.gates().values())
    return StageContents(number, tuple(layers), dict(kinds), hashed, stage.is_first, stage.is_last, len(stage.mtp) > 0)


def _gathered(stage: Stage, keeps: bool) -> int:
    """Bytes of the whole weights that FSDP2 gathers: of all units, or of the largest block and the rest."""
    *blocks, rest = ([p for p in unit if isinstance(p, DTensor)] for unit in _units(stage))
    sizes = [_size(block) for block in blocks]
    return (sum(sizes) if keeps else max(sizes, default=0)) + _size(rest)


def _whole_gradients(stage: Stage, step: DryStep) -> int:
    """Bytes of gradients before their reduction: one block's; or all, in fp32, if micro-batches accumulate."""
    units = [[p for p in unit if isinstance(p, DTensor) and p.grad is not None] for unit in _units(stage)]
    return 4 * sum(p.numel() for unit in units for p in unit) if step.micro_batches > 1 else max(map(_size, units))


def _units(stage: Stage) -> list[list[nn.Parameter]]:
    """What FSDP2 gathers together: the parameters of each block, and last those around the blocks."""
    blocks = [list(block.parameters()) for block in stage.blocks() if not isinstance(block, DSparkStage)]
    inside = {id(parameter) for block in blocks for parameter in block}
    return [*blocks, [parameter for parameter in stage.parameters() if id(parameter) not in inside]]


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)
