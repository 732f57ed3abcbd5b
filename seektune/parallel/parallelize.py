"""Applies all parallelism to a model: pipeline, context, expert, recomputation and FSDP2, in this order."""

from collections.abc import Callable

import torch

from seektune.model.config import DeepseekV4Config
from seektune.model.transformer import TransformerPart
from seektune.parallel.config import ParallelConfig
from seektune.parallel.context import apply_context_parallel
from seektune.parallel.expert import apply_expert_parallel
from seektune.parallel.fsdp import apply_fsdp
from seektune.parallel.layer_split import count_stages, split_layers, stages_of
from seektune.parallel.mesh import Mesh
from seektune.parallel.model import ParallelModel
from seektune.parallel.pipeline import PipelineRunner, Runner, SequentialRunner
from seektune.parallel.placement import gathered
from seektune.parallel.recompute import recompute_blocks
from seektune.parallel.stage import Stage

Prepare = Callable[[TransformerPart], None]
"""Changes a part of the model that is still on meta, for example by injecting adapters."""


def unchanged(part: TransformerPart) -> None:
    """Do nothing: every weight is trained."""


def parallelize(
    architecture: DeepseekV4Config,
    mesh: Mesh,
    config: ParallelConfig,
    dtype: torch.dtype,
    numerics: str = "plain",
    prepare: Prepare = unchanged,
    drops: bool = False,
    drafter: bool = False,
    indexers_alone: bool = False,
) -> ParallelModel:
    """The stages of this process, with allocated but uninitialized memory.

    Order: cut into stages, `prepare`, rows along the context axis, experts along theirs, recompute, FSDP2, memory.
    `drops` says that there is dropout, which recomputing must repeat; `drafter` that the model has its DSpark stages;
    `indexers_alone` that `prepare` leaves only indexers trainable.
    """
    stages = build_stages(architecture, mesh, config, dtype, numerics, drafter)
    for stage in stages.values():
        prepare(stage)
        apply_context_parallel(stage, mesh)
        apply_expert_parallel(stage, mesh, config)
        recompute_blocks(stage, config.recompute, drops)
        apply_fsdp(stage, mesh, config)
        stage.to_empty(device=torch.device("cpu") if config.cpu_offload else mesh.device)
    runner = _make_runner(stages, architecture, mesh, config)
    return ParallelModel(stages, runner, mesh, prepare, indexers_alone, config)


def sharing_weights(model: ParallelModel) -> ParallelModel:
    """Another model on the memory of a model's weights, adapters included, for passes without gradient. Collective.

    FSDP2 has no part in it: what it cuts is gathered into new memory.
    """
    first = next(iter(model.stages.values()))
    stages = build_stages(model.config, model.mesh, model.layout, first.dtype, first.numerics)
    for number, stage in stages.items():
        model.prepare(stage)
        apply_context_parallel(stage, model.mesh)
        apply_expert_parallel(stage, model.mesh, model.layout)
        state = {name: gathered(x).detach() for name, x in model.stages[number].state_dict().items()}
        stage.load_state_dict(state, assign=True)
    runner = _make_runner(stages, model.config, model.mesh, model.layout)
    return ParallelModel(stages, runner, model.mesh, model.prepare, layout=model.layout)


def build_stages(
    architecture: DeepseekV4Config,
    mesh: Mesh,
    config: ParallelConfig,
    dtype: torch.dtype,
    numerics: str,
    drafter: bool = False,
) -> dict[int, Stage]:
    """The stages of this process by number, on the meta device."""
    layers = architecture.num_hidden_layers
    mtp = architecture.mtp_layers
    pp_size = mesh.dims.pp_size
    count = _count(architecture, mesh, config)
    ranges = split_layers(layers, mtp, count, config.pipeline.layers_per_stage if pp_size > 1 else None)
    numbers = stages_of(mesh.coords.pp, pp_size, count, config.pipeline.schedule) if pp_size > 1 else [0]
    return {
        number: Stage(architecture, ranges[number], dtype, numerics, number == 0, number == count - 1, drafter)
        for number in numbers
    }


def _make_runner(
    stages: dict[int, Stage], architecture: DeepseekV4Config, mesh: Mesh, config: ParallelConfig
) -> Runner:
    if mesh.dims.pp_size == 1:
        return SequentialRunner(stages[0])
    assert mesh.axes is not None
    return PipelineRunner(stages, _count(architecture, mesh, config), mesh, mesh.axes, config.pipeline)


def _count(architecture: DeepseekV4Config, mesh: Mesh, config: ParallelConfig) -> int:
    if mesh.dims.pp_size == 1:
        return 1
    layers = architecture.num_hidden_layers
    mtp = architecture.mtp_layers
    return count_stages(config.pipeline, mesh.dims.pp_size, layers, mtp)
