"""Inputs of a plan: a model's tensors, a training job and a layout, as plain numbers."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from seektune.model.choices import IndexerStage
from seektune.model.config import DeepseekV4Config
from seektune.parallel.config import ParallelConfig
from seektune.parallel.dims import ParallelDims, make_dims
from seektune.parallel.layer_split import Action, count_stages, split_layers, stages_of
from seektune.parallel.micro_batches import micro_batch_rows
from seektune.planner.expressions import Number, Row
from seektune.planner.rollout_formulas import AnswerCaches

RECOMPUTE = {"none": 0, "block": 1, "selective": 2}
"""Codes of the recompute modes in formulas."""


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer of the whole model."""

    name: str
    shape: tuple[int, ...]
    size: int
    """Bytes of an element."""
    learns: bool
    buffer: bool = False
    values: int = 1
    """Values stored per element: two for packed FP4, none for scales."""
    moment_bytes: float = 8
    """Bytes of moments per element, if it is trained."""
    matrix_flops: int = 0
    """Operations with which the optimizer orthogonalises its matrices, all of them; 0 if it does not."""
    apart: bool = True
    """Whether FSDP2 gathers its block apart from others; not that of DSpark stages that are trained."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def expert(self) -> bool:
        """Whether its first dim is the experts."""
        return ".ffn.experts." in self.name and len(self.shape) == 3 and self.shape[0] > 1

    @property
    def adapter(self) -> int:
        """0 if it is not an adapter's; 1 if the adapter's rank is the first dim, 2 if it is another."""
        if ".lora." not in self.name:
            return 0
        return 1 if self.name.endswith(".A") and len(self.shape) == 2 else 2

    @property
    def unit(self) -> str:
        """The block that it belongs to, which FSDP2 gathers together; empty for weights outside the blocks."""
        kind, _, rest = self.name.partition(".")
        return f"{kind}.{rest.partition('.')[0]}" if kind in ("layers", "mtp") and self.apart else ""

    def in_stage(self, layers: range, first: bool, last: bool) -> bool:
        """Whether a stage with these layers holds it; `first` and `last` say which end of the model it is."""
        kind, number = (*self.name.split(".", 2), "")[:2]
        if kind == "layers":
            return int(number) in layers
        return first if kind == "embed" else last


@dataclass(frozen=True)
class StageWeights:
    """The weights of a pipeline stage as tables of the formulas."""

    tensors: list[Row]
    """One row per group of equal tensors."""
    units: list[Row]
    """One row per FSDP2 unit: each block, and the weights outside the blocks."""


class Weights:
    """All weights of a model; the tables of a stage are computed once."""

    def __init__(self, weights: Sequence[Weight]):
        self.all = tuple(weights)
        parameters = [weight for weight in weights if not weight.buffer]
        trained = sum(weight.numel for weight in parameters if weight.learns)
        self._trained = {weight.name for weight in weights if weight.learns}
        self.trainable_share = trained / sum(weight.numel for weight in parameters)
        self._parts: dict[tuple[range, bool, bool], StageWeights] = {}
        self.cache: dict[object, dict[str, Number]] = {}
        """Results of the `HELD` formulas, by mesh and rank."""

    def part(self, layers: range, first: bool, last: bool) -> StageWeights:
        """The weights of a stage."""
        key = (layers, first, last)
        if key not in self._parts:
            held = [weight for weight in self.all if weight.in_stage(*key)]
            self._parts[key] = StageWeights(_tensors(held), _units(held))
        return self._parts[key]

    def learns(self, name: str) -> bool:
        """Whether the weight with that name is trained."""
        return name in self._trained


@dataclass(frozen=True)
class TeacherModel:
    """A checkpoint that runs beside the model: the teacher of distillation, or a reference model."""

    config: DeepseekV4Config
    weights: Weights
    streamed: bool
    """Whether quantized weights stay on disk and are read one block ahead."""
    distilled: bool
    """Whether its hidden states are kept for the loss, which computes its distributions: not of a reference."""


@dataclass(frozen=True)
class TrainingJob:
    """A training job, independent of the cluster."""

    config: DeepseekV4Config
    weights: Weights
    itemsize: int
    """Bytes of an element of activations."""
    parallel: ParallelConfig
    rows: int
    """Rows of an optimizer step."""
    micro_size: int
    length: int
    mtp: bool
    """Whether the MTP block runs."""
    masters: bool
    lora_rank: int = 0
    """Rank of adapters; 0 if the weights themselves are trained."""
    streamed: bool = False
    """Whether frozen weights stay on disk and are read one block ahead."""
    references: int = 0
    """Forward passes of each micro-batch for a reference model or a teacher, without gradient."""
    frozen_models: bool = False
    """Whether those are of other checkpoints."""
    teacher_model: TeacherModel | None = None
    """The teacher or reference model, if it is the only one and a folder here; None if its memory is not counted."""
    qat: str = "none"
    """The format that weights are rounded to in each forward pass."""
    anchors: int = 0
    """Tokens of a micro-batch from which drafts are trained; 0 if the model is trained."""
    indexers: IndexerStage = "frozen"
    """What is trained of the indexers."""
    answers: AnswerCaches | None = None
    """Of the answers that the model samples to be trained on them; None if it samples none."""

    @property
    def drafter(self) -> bool:
        """Whether only the DSpark stages are trained: the backbone runs forward, and keeps nothing for backward."""
        return self.anchors > 0

    @property
    def runs_forward_only(self) -> bool:
        """Whether no gradient goes through the layers of the model."""
        return self.drafter or self.indexers == "warmup"

    def with_parallel(self, changes: Mapping[str, object]) -> "TrainingJob":
        """The same job with other settings under `parallel`."""
        return replace(self, parallel=self.parallel.model_copy(update=changes))


@dataclass(frozen=True)
class Layout:
    """A job on a number of processes: mesh, stages, micro-batches and pipeline order."""

    job: TrainingJob
    dims: ParallelDims
    stages: int
    rows_at_a_time: int
    micro_batches: int
    length: int
    """Tokens of a row, a multiple of cp_size."""
    order: "Order"
    order_of: "OrderOf"

    @property
    def pp(self) -> int:
        """Pipeline-parallel size."""
        return self.dims.pp_size

    def layers(self, stage: int) -> range:
        """Layers of a stage."""
        config = self.job.config
        pipeline = self.job.parallel.pipeline
        per_stage = pipeline.layers_per_stage if self.pp > 1 else None
        return split_layers(config.num_hidden_layers, config.mtp_layers, self.stages, per_stage)[stage]

    def parts_of(self, config: DeepseekV4Config, weights: Weights, process: int) -> list[StageWeights]:
        """The weights of a pipeline rank of another model on the same mesh, whose layers are split evenly."""
        pipeline = self.job.parallel.pipeline.model_copy(update={"layers_per_stage": None})
        layers = config.num_hidden_layers
        count = count_stages(pipeline, self.pp, layers, config.mtp_layers) if self.pp > 1 else 1
        ranges = split_layers(layers, config.mtp_layers, count)
        numbers = stages_of(process, self.pp, count, pipeline.schedule) if self.pp > 1 else [0]
        return [weights.part(ranges[number], number == 0, number == count - 1) for number in numbers]

    def stages_of(self, process: int) -> list[int]:
        """Stages of a pipeline rank."""
        if self.pp == 1:
            return [0]
        return stages_of(process, self.pp, self.stages, self.job.parallel.pipeline.schedule)

    def __str__(self) -> str:
        parallel = self.job.parallel
        parts = [str(self.dims), f"recompute {parallel.recompute}", f"micro-batches {self.micro_batches} x "
                 f"{self.rows_at_a_time} of {self.length}"]  # fmt: skip
        if self.pp > 1:
            parts.insert(1, parallel.pipeline.schedule)
        return ", ".join(parts)


Order = Mapping[int, Sequence[Action]]
"""The actions of each pipeline rank."""
OrderOf = Callable[[str, int, int, int], Order]
"""The order of a schedule, pp_size, number of stages and number of micro-batches."""


def make_layout(job: TrainingJob, gpus: int, order_of: OrderOf) -> Layout:
    """The layout of a job on `gpus` processes.

    Raises:
        ValueError: sizes or rows do not fit that many processes; the message suggests some that do.
    """
    dims = make_dims(job.parallel, gpus, job.config)
    rows = micro_batch_rows(dims, job.parallel, job.config, job.rows, job.micro_size)
    micro_batches = job.rows // dims.data_size // rows
    config = job.config
    pipeline = job.parallel.pipeline
    stages = 1
    if dims.pp_size > 1:
        stages = count_stages(pipeline, dims.pp_size, config.num_hidden_layers, config.mtp_layers)
    length = -(-job.length // dims.cp_size) * dims.cp_size
    order = order_of(pipeline.schedule, dims.pp_size, stages, micro_batches) if dims.pp_size > 1 else {}
    return Layout(job, dims, stages, rows, micro_batches, length, order, order_of)


def in_flight(layout: Layout, process: int) -> dict[int, int]:
    """Micro-batches between forward and backward in each stage of a process, when most layers are held.

    The backward of weights is the one that frees activations.
    """
    if layout.pp == 1:
        return {0: 1}
    now = dict.fromkeys(layout.stages_of(process), 0)
    weights = {stage: max(1, len(layout.layers(stage))) for stage in now}
    most = dict(now)
    held = 0
    most_held = 0
    for kind, stage, _ in layout.order[process]:
        change = {"F": 1, "B": -1, "I": 0, "W": -1}[kind]
        now[stage] += change
        held += change * weights[stage]
        if held > most_held:
            most_held = held
            most = dict(now)
    return most


def _tensors(weights: Sequence[Weight]) -> list[Row]:
    counts: Counter[tuple[Number, ...]] = Counter()
    for weight in weights:
        rows = (weight.shape or (1,))[0]
        kind = map(int, (weight.expert, weight.learns, weight.buffer, weight.adapter, weight.values))
        counts[rows, weight.numel // rows, weight.size, *kind, weight.moment_bytes, weight.matrix_flops] += 1
    names = ("rows", "rest", "size", "expert", "learns", "whole", "low", "values", "moment_bytes",
             "matrix_flops")  # fmt: skip
    return [{**dict(zip(names, key, strict=True)), "count": count} for key, count in counts.items()]


def _units(weights: Sequence[Weight]) -> list[Row]:
    sums: dict[str, Counter[str]] = {}
    for weight in weights:
        if weight.buffer:
            continue
        kind = "expert" if weight.expert else "dense"
        numel = weight.numel
        found = {f"{kind}_bytes": numel * weight.size, f"{kind}_learns": numel * weight.learns}
        found |= {f"{kind}_learn_bytes": numel * weight.size * weight.learns}
        if weight.adapter:
            found = {f"{kind}_low": numel}
        elif weight.size == 1:
            found["quantized_bytes"] = numel
        sums.setdefault(weight.unit, Counter()).update(found)
    kinds = ("bytes", "learns", "learn_bytes", "low")
    names = (*(f"{kind}_{what}" for kind in ("dense", "expert") for what in kinds), "quantized_bytes")
    return [{**{name: unit[name] for name in names}, "around": int(name == "")} for name, unit in sums.items()]
