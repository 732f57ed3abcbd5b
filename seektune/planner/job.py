"""What a plan is made of: a model's tensors, a training job and a layout, as plain numbers."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from seektune.model.config import DeepseekV4Config
from seektune.parallel.config import ParallelConfig
from seektune.parallel.dims import ParallelDims, make_dims
from seektune.parallel.layer_split import Action, count_stages, split_layers, stages_of
from seektune.parallel.micro_batches import micro_batch_rows
from seektune.planner.expressions import Number, Row

RECOMPUTE = {"none": 0, "block": 1, "selective": 2}
"""Numbers that stand for modes in formulas."""


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
    """Numbers that an element stands for: two of FP4, none of scales."""

    @property
    def numel(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def expert(self) -> bool:
        """Whether it is stacked by experts."""
        return ".ffn.experts." in self.name and len(self.shape) == 3 and self.shape[0] > 1

    @property
    def adapter(self) -> int:
        """0 for none; 1 where the adapter's rank is the first dim, 2 where it is another."""
        if ".lora." not in self.name:
            return 0
        return 1 if self.name.endswith(".A") and len(self.shape) == 2 else 2

    @property
    def unit(self) -> str:
        """The block that it belongs to, which FSDP2 gathers together; empty for what stands around the blocks."""
        kind, _, rest = self.name.partition(".")
        return f"{kind}.{rest.partition('.')[0]}" if kind in ("layers", "mtp") else ""

    def in_stage(self, layers: range, first: bool, last: bool) -> bool:
        """Whether a stage with these layers holds it."""
        kind, number = (*self.name.split(".", 2), "")[:2]
        if kind == "layers":
            return int(number) in layers
        return first if kind == "embed" else last


@dataclass(frozen=True)
class StageWeights:
    """The weights of a pipeline stage as tables of the formulas."""

    tensors: list[Row]
    """Rows of equal tensors."""
    units: list[Row]
    """What FSDP2 gathers together: each block, and what stands around the blocks."""


class Weights:
    """All weights of a model; parts of it are added up once."""

    def __init__(self, weights: Sequence[Weight]):
        self.all = tuple(weights)
        parameters = [weight for weight in weights if not weight.buffer]
        trained = sum(weight.numel for weight in parameters if weight.learns)
        self.share_that_learns = trained / sum(weight.numel for weight in parameters)
        self._parts: dict[tuple[range, bool, bool], StageWeights] = {}
        self.held: dict[object, dict[str, Number]] = {}
        """What was found out about processes of a mesh, by mesh and rank."""

    def part(self, layers: range, first: bool, last: bool) -> StageWeights:
        """Those of a stage."""
        key = (layers, first, last)
        if key not in self._parts:
            held = [weight for weight in self.all if weight.in_stage(*key)]
            self._parts[key] = StageWeights(_tensors(held), _units(held))
        return self._parts[key]

    def learns(self, name: str) -> bool:
        """Whether the weight of that name is trained."""
        return any(weight.learns for weight in self.all if weight.name == name)


@dataclass(frozen=True)
class TrainingJob:
    """A training job, whatever it runs on."""

    config: DeepseekV4Config
    weights: Weights
    itemsize: int
    """Bytes of a number of activations."""
    parallel: ParallelConfig
    rows: int
    """Of an optimizer step."""
    micro_size: int
    length: int
    mtp: bool
    """Whether the MTP block runs."""
    masters: bool
    lora_rank: int = 0
    """Of adapters; 0 where the weights themselves train."""
    streamed: bool = False
    """Whether frozen weights stay on disk and come a block ahead of use."""

    def with_parallel(self, changes: Mapping[str, object]) -> "TrainingJob":
        """The same job with other settings under `parallel`."""
        return replace(self, parallel=self.parallel.model_copy(update=changes))


@dataclass(frozen=True)
class Layout:
    """How a job's processes stand, and what each does."""

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
        """Processes of the pipeline."""
        return self.dims.pp_size

    def layers(self, stage: int) -> range:
        """Layers of a stage."""
        config = self.job.config
        pipeline = self.job.parallel.pipeline
        per_stage = pipeline.layers_per_stage if self.pp > 1 else None
        return split_layers(config.num_hidden_layers, config.num_nextn_predict_layers, self.stages, per_stage)[stage]

    def stages_of(self, process: int) -> list[int]:
        """Stages of a process of the pipeline."""
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
"""What each process of the pipeline does."""
OrderOf = Callable[[str, int, int, int], Order]
"""Of a schedule, pp_size, stages, micro-batches."""


def lay_out(job: TrainingJob, gpus: int, order_of: OrderOf) -> Layout:
    """The layout of a job on so many processes.

    Raises:
        ValueError: sizes or rows do not fit so many processes; the sentence offers some that do.
    """
    dims = make_dims(job.parallel, gpus, job.config)
    rows = micro_batch_rows(dims, job.parallel, job.config, job.rows, job.micro_size)
    micro_batches = job.rows // dims.data_size // rows
    config = job.config
    stages = 1
    if dims.pp_size > 1:
        stages = count_stages(
            job.parallel.pipeline, dims.pp_size, config.num_hidden_layers, config.num_nextn_predict_layers
        )
    length = -(-job.length // dims.cp_size) * dims.cp_size
    schedule = job.parallel.pipeline.schedule
    order = order_of(schedule, dims.pp_size, stages, micro_batches) if dims.pp_size > 1 else {}
    return Layout(job, dims, stages, rows, micro_batches, length, order, order_of)


def in_flight(layout: Layout, process: int) -> dict[int, int]:
    """Micro-batches of each stage of a process whose forward has run and whose backward has not, at the moment when
    most layers are held. The backward of weights is the one that frees.
    """
    if layout.pp == 1:
        return {0: 1}
    now = most = dict.fromkeys(layout.stages_of(process), 0)
    weights = {stage: max(1, len(layout.layers(stage))) for stage in now}
    for kind, stage, _ in layout.order[process]:
        now = {**now, stage: now[stage] + {"F": 1, "B": -1, "I": 0, "W": -1}[kind]}
        if sum(now[s] * weights[s] for s in now) > sum(most[s] * weights[s] for s in most):
            most = now
    return most


def _tensors(weights: Sequence[Weight]) -> list[Row]:
    alike: Counter[tuple[int, ...]] = Counter()
    for weight in weights:
        rows = (weight.shape or (1,))[0]
        kind = weight.expert, weight.learns, weight.buffer, weight.adapter, weight.values
        alike[rows, weight.numel // rows, weight.size, *kind] += 1
    names = ("rows", "rest", "size", "expert", "learns", "whole", "low", "values")
    return [{**dict(zip(names, map(int, key), strict=True)), "count": count} for key, count in alike.items()]


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
            found["packed_bytes"] = numel
        sums.setdefault(weight.unit, Counter()).update(found)
    kinds = ("bytes", "learns", "learn_bytes", "low")
    names = (*(f"{kind}_{what}" for kind in ("dense", "expert") for what in kinds), "packed_bytes")
    return [{**{name: unit[name] for name in names}, "around": int(name == "")} for name, unit in sums.items()]
