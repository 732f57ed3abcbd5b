"""Runs what decodes on the model of a run: whole in one process, or on the training mesh, led by rank 0."""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch.nn import ModuleList

from seektune.checkpoint import load_weights
from seektune.checkpoint.source import FolderSource
from seektune.generate.mesh import DecodeMesh
from seektune.generate.ranks import MeshRanks
from seektune.model.causal_lm import DeepseekV4ForCausalLM, checkpoint_shapes
from seektune.model.quantized import quantize_modules
from seektune.parallel.config import ParallelConfig
from seektune.parallel.decode_stage import DecodeStage
from seektune.parallel.dims import ParallelDims
from seektune.parallel.expert import apply_expert_parallel
from seektune.parallel.mesh import Mesh
from seektune.parallel.model import ParallelModel
from seektune.parallel.placement import shard_of
from seektune.run.context import RunContext
from seektune.signals import Interrupted

T = TypeVar("T")


def decoding_obstacle(dims: ParallelDims, config: ParallelConfig, drafts: bool = False) -> str | None:
    """Why a model with this layout cannot decode; None if it can: no weight may be cut, and a process has one stage.

    With `drafts`, which the drafter makes, layers may not be spread either.
    """
    if dims.pp_size > 1 and drafts:
        return f"drafts need all layers on a process, not {dims.pp_size} pipeline stages"
    schedule = config.pipeline.schedule
    if dims.pp_size > 1 and schedule != "1f1b":
        return f"a process has two pipeline stages (parallel.pipeline.schedule={schedule}; 1f1b has one)"
    if dims.cp_size > 1:
        return f"rows are cut over {dims.cp_size} processes (parallel.cp_size)"
    if dims.fsdp_size > 1:
        whole = f"parallel.dp_replicate={dims.stage_size} and parallel.dp_shard=1 keep them whole"
        return f"FSDP cuts the weights over {dims.fsdp_size} processes; {whole}"
    return "weights are in the host's memory (parallel.cpu_offload)" if config.cpu_offload and dims.world > 1 else None


def run_decoding(
    run: RunContext,
    model: ParallelModel,
    body: Callable[[DeepseekV4ForCausalLM | DecodeMesh], T],
    alive: Callable[[], None] = lambda: None,
    drafts: bool = False,
) -> T:
    """The result of `body`, which decodes with what it is given, on all processes; rank 0 runs it.

    The other ranks call `alive` as often as they take part. With `drafts` the model has its drafter: DSpark stages that
    the run carries along take memory of their own until the result is there, in the bytes of the checkpoint.

    Raises:
        ArithmeticError: the model gives no number.
        Interrupted: a signal asked to stop, on every process.
        RuntimeError: a forward failed on this process, or another process is gone.
    """
    axes = model.mesh.axes
    part = DeepseekV4ForCausalLM.of(model.whole) if axes is None else model.decodable()
    if drafts and model.carried is not None and not model.trains_drafter:
        part.mtp = _carried_stages(model.carried, part, model.mesh, model.decode_layout)
    if axes is None:
        assert isinstance(part, DeepseekV4ForCausalLM), "one process has the whole model"
        return body(part)
    mesh = DecodeMesh(part, MeshRanks(axes.commands, run.interruption, model.mesh.dims.pp_size))
    found = model.mesh.ranks.each(_outcome(mesh, body, alive).result)[0]
    run.stop_if_signalled()
    assert found is not None, "a body that a signal stopped stops the run"
    return found


def _carried_stages(
    folder: Path, model: DeepseekV4ForCausalLM | DecodeStage, mesh: Mesh, layout: ParallelConfig
) -> ModuleList:
    """The DSpark stages of a checkpoint, with the experts of this process. Collective."""
    complete = DeepseekV4ForCausalLM(model.config, "meta", model.dtype, model.numerics, drafter=True)
    kind = FolderSource(folder).kind
    quantize_modules(complete.mtp, lambda name: kind(f"mtp.{name}"))
    apply_expert_parallel(complete, mesh, layout)
    complete.mtp.to_empty(device=model.device)
    names = {f"mtp.{name}": tensor for name, tensor in complete.mtp.state_dict().items()}
    shards = {name: shard_of(name, tensor, mesh) for name, tensor in names.items()}
    mesh.ranks.each(lambda: load_weights(shards, folder, checkpoint_shapes(model.config)))
    return complete.mtp


def _outcome(mesh: DecodeMesh, body: Callable[[DecodeMesh], T], alive: Callable[[], None]) -> Future[T | None]:
    """What this rank finds or raises; an error at which the ranks are out of step is raised here."""
    outcome: Future[T | None] = Future()
    try:
        outcome.set_result(_lead_or_follow(mesh, body, alive))
    except BaseException as error:
        if not mesh.ranks.in_step:
            raise
        outcome.set_exception(error)
    return outcome


def _lead_or_follow(mesh: DecodeMesh, body: Callable[[DecodeMesh], T], alive: Callable[[], None]) -> T | None:
    if mesh.ranks.rank > 0:
        mesh.follow(alive)
        return None
    try:
        return mesh.lead(partial(body, mesh))
    except Interrupted:
        if not mesh.ranks.in_step:
            raise
        return None  # raised on all processes, once the others have stopped following
