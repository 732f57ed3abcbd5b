"""FSDP2 over the data and context axes: weights are sharded and gathered per block, gradients are reduced."""

from collections.abc import Callable

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, HSDPMeshInfo, ShardPlacementResult
from torch.distributed.tensor import Shard

from seektune.model.dspark import DSparkStage
from seektune.model.transformer import TransformerPart
from seektune.parallel.config import ParallelConfig
from seektune.parallel.mesh import Axes, Mesh

Placement = Callable[[nn.Parameter], ShardPlacementResult | Shard | None]


def apply_fsdp(part: TransformerPart, mesh: Mesh, config: ParallelConfig) -> None:
    """Shard the parameters of each block, and those outside the blocks, over the processes of the stage.

    Nothing is cast: parameters that stay fp32 in a bf16 model are gathered as such, through process groups of their
    own. Experts are cut over the processes that hold the same ones. Gradients are summed in fp32, not averaged: losses
    already have the denominator of the whole step. In a pipeline gathered weights stay until the step ends:
    micro-batches need them again and again, and the schedules that delay weight gradients look for them.
    Frozen weights travel in their own bytes, quantized ones as integers; one that a process needs whole anyway stays
    out of FSDP2, which would copy it. DSpark stages are gathered with what is outside the blocks: their loss uses parts
    of them outside of their forward pass, again and again.
    """
    if mesh.axes is None or mesh.dims.stage_size == 1:
        return
    placement = _placement(part, mesh, mesh.axes)
    ignored = set() if config.cpu_offload else _whole_here(part, mesh)
    offload = CPUOffloadPolicy(pin_memory=mesh.device.type == "cuda") if config.cpu_offload else OffloadPolicy()
    blocks = [block for block in part.blocks() if not isinstance(block, DSparkStage)]
    for module in (*blocks, part):
        fully_shard(
            module,
            mesh=mesh.axes.dense,
            reshard_after_forward=config.reshard and module is not part and mesh.dims.pp_size == 1,
            shard_placement_fn=placement,
            mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32),
            offload_policy=offload,
            ignored_params=ignored,
        )
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def reshard(part: TransformerPart) -> None:
    """Free the weights that a forward pass without backward gathered; parameters are sharded again."""
    for module in part.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def prepare_unused_mtp(part: TransformerPart) -> None:
    """Gather the MTP block once if it will not run: FSDP2's backward needs state that only gathering creates."""
    for block in part.mtp:
        if isinstance(block, FSDPModule):
            block.unshard()
            block.reshard()


def _whole_here(part: TransformerPart, mesh: Mesh) -> set[nn.Parameter]:
    """Frozen parameters that are not sharded: they need neither gathering nor reduction."""
    stacked = _stacked(part)
    dims = mesh.dims
    return {
        parameter
        for parameter in part.parameters()
        if not parameter.requires_grad and (dims.expert_shard if parameter in stacked else dims.fsdp_size) == 1
    }


def _placement(part: TransformerPart, mesh: Mesh, axes: Axes) -> Placement:
    """The mesh and dim over which each parameter is sharded."""
    expert_info = _mesh_info(axes.expert_shards)
    fp32_info = _mesh_info(axes.dense_fp32)
    stacked = _stacked(part)
    pieces = mesh.dims.expert_shard
    mixed = len({parameter.dtype for parameter in part.parameters()}) > 1

    def coords(parameter: nn.Parameter) -> ShardPlacementResult | Shard | None:
        cut = Shard(0)
        info = fp32_info if mixed and parameter.dtype == torch.float32 else None
        if parameter in stacked:
            # only the first dim may be cut unevenly; rows of frozen bytes stay whole, as they are in files
            sizes = parameter.shape if parameter.requires_grad else parameter.shape[:2]
            cut = Shard(next((dim for dim, size in enumerate(sizes) if size % pieces == 0), 0))
            info = expert_info if mesh.dims.ep_size > 1 else info
        return cut if info is None else ShardPlacementResult(cut, info)

    return coords


def _stacked(part: TransformerPart) -> set[nn.Parameter]:
    """Parameters with the expert as first dim."""
    return {p for block in part.blocks() for p in block.ffn.experts.parameters() if p.dim() == 3}


def _mesh_info(mesh: DeviceMesh) -> FSDPMeshInfo:
    if mesh.ndim == 1:
        return FSDPMeshInfo(mesh, shard_mesh_dim=0)
    return HSDPMeshInfo(mesh, shard_mesh_dim=1, replicate_mesh_dim=0)
