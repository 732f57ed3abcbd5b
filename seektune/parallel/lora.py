"""Adapters of a sharded model: initialization, saving and loading."""

from collections.abc import Iterator
from math import isclose
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from seektune.checkpoint import Shard, as_shard, weight_shapes
from seektune.checkpoint.gather import on_first_rank
from seektune.checkpoint.source import Source
from seektune.lora import files as adapter_files
from seektune.lora.base_copies import check_copies
from seektune.lora.delta import LoraDelta
from seektune.lora.dora import DoraLinear
from seektune.lora.format import read_adapter
from seektune.lora.initialize import initial_a
from seektune.lora.state import TRAINED, Adapted, adapted_modules, adapter_state
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.parallel.load import experts_here
from seektune.parallel.model import ParallelModel
from seektune.parallel.parallelize import sharing_weights
from seektune.parallel.placement import shard_of
from seektune.parallel.stage import Stage


@torch.no_grad()
def init_adapters(model: ParallelModel, seed: int) -> None:
    """Initialize the local shards as `lora.initialize.init_adapters` does; needs the frozen weights."""
    for stage in model.stages.values():
        _measure_rows(stage)
        for name, module in adapted_modules(stage):
            parts = _parts(model, name, module)
            a = parts["A"]
            b = parts["B"]
            a.tensor.copy_(initial_a(name, a.shape, seed)[a.box])
            b.tensor.zero_()
            if isinstance(module, DoraLinear):
                parts["magnitude"].tensor.copy_(module.square.sqrt()[parts["magnitude"].box])


def save_adapter(model: ParallelModel, folder: Path, base: str | None, revision: str | None, recipe: str) -> None:
    """As `lora.files.save_adapter`; every process calls it, rank 0 gathers and writes.

    Raises:
        OSError: writing failed; the same on all processes.
    """
    ranks = model.mesh.ranks
    whole = model.full_model()
    if ranks.group is None:
        adapter_files.save_adapter(whole, folder, base, revision, recipe)
        return

    def write(source: Source) -> bool:
        tensors = {name: source.stored(name).weight.cpu() for name, _ in source.shapes()}
        adapter_files.save_adapter(whole, folder, base, revision, recipe, tensors=tensors)
        return True

    on_first_rank(model.adapter_shards(), weight_shapes(adapter_state(whole)), ranks, write)


@torch.no_grad()
def load_adapter(model: ParallelModel, folder: Path) -> None:
    """Load the local shards from an adapter's files; every process reads them.

    Raises:
        ValueError: the files are damaged, or are not of adapters of these places, ranks and scalings.
    """
    changes, _, copies = read_adapter(folder)
    base = {name: as_shard(tensor) for name, tensor in model.base_shards().items()}
    model.mesh.ranks.each(lambda: check_copies(copies, base.get, folder))
    wanted = [name for name, _ in adapted_modules(model.full_model())]
    if different := sorted(set(wanted) ^ changes.keys()):
        where = f"{folder} changes it" if different[0] in changes else f"{folder} does not"
        raise ValueError(f"{different[0]} carries an adapter in only one of both: {where}")
    for stage in model.stages.values():
        for name, module in adapted_modules(stage):
            if changes[name].magnitude is not None and not isinstance(module, DoraLinear):
                raise ValueError(f"{folder} has lengths of rows (DoRA) for {name}, here there are none (lora.dora)")
            for part, piece in _parts(model, name, module).items():
                piece.tensor.copy_(_values(changes[name], part, piece, f"{part} of {name} in {folder}")[piece.box])
            theirs = changes[name].scaling
            ours = adapter_files.scaling_of(module, TRAINED)
            if not isclose(theirs, ours, rel_tol=1e-6):
                raise ValueError(f"{folder} multiplies the change of {name} by {theirs:g}, this model by {ours:g}")


def with_adapter(model: ParallelModel, folder: Path) -> ParallelModel:
    """Another model on the frozen weights of `model`, with the adapter of a folder in place of the trained one.

    Only the adapter takes memory of its own. Collective.

    Raises:
        ValueError: as `lora.files.load_adapter`.
    """
    found = sharing_weights(model)
    whole = DeepseekV4ForCausalLM(model.config, "meta")
    experts = experts_here(model.config.n_routed_experts, model.mesh)
    for stage in found.stages.values():
        if stage.is_adapted():
            adapter_files.unload_adapter(stage, TRAINED)
        adapter_files.load_adapter(stage, folder, experts=experts, whole=whole)
    return found


def _values(change: LoraDelta, part: str, piece: Shard, what: str) -> Tensor:
    """One tensor of a delta, in the model's shape."""
    values = {"A": change.a, "B": change.b, "magnitude": change.magnitude}[part]
    if part == "A" and len(piece.shape) == 2 and values is not None and values.dim() == 3:
        if not torch.equal(values, values[:1].expand_as(values)):
            raise ValueError(f"{what} differs between experts, here they share one (lora.shared_a)")
        values = values[0]
    if values is None or tuple(values.shape) != piece.shape:
        found = "missing" if values is None else f"of shape {list(values.shape)}"
        raise ValueError(f"{what} is {found}, this model needs {list(piece.shape)}")
    return values


def _parts(model: ParallelModel, name: str, module: Adapted) -> dict[str, Shard]:
    """The local shards of a module's trained tensors."""
    return {part: shard_of(whole, tensor, model.mesh) for part, whole, tensor in _trained(name, module)}


def _trained(name: str, module: Adapted) -> Iterator[tuple[str, str, Tensor]]:
    for part in ("A", "B"):
        yield part, f"{name}.lora.{TRAINED}.{part}", module.lora[TRAINED].get_parameter(part)
    if isinstance(module, DoraLinear):
        yield "magnitude", f"{name}.magnitude", module.magnitude


def _measure_rows(stage: Stage) -> None:
    """Compute DoRA's row norms; sharded weights are gathered a block at a time."""
    for block in stage.blocks():
        found = [module for module in block.modules() if isinstance(module, DoraLinear)]
        if found and isinstance(block, FSDPModule):
            block.unshard()
        for module in found:
            module.measure_rows()
        if found and isinstance(block, FSDPModule):
            block.reshard()
