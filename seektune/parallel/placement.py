"""Which shard of a named tensor a process holds: sharded by FSDP2, by the expert axis, or not at all."""

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from seektune.checkpoint import Shard
from seektune.parallel.mesh import Mesh

EXPERTS = ".ffn.experts."
"""In the names of routed experts' parameters."""


def is_stacked(name: str, x: Tensor) -> bool:
    """Whether a tensor of that name has the expert as first dim, so that the expert axis shards it.

    All tensors of routed experts do, but for an adapter's A that they share.
    """
    return EXPERTS in name and x.dim() == 3


def local(x: Tensor) -> Tensor:
    """The local tensor of one that may be sharded; writing to it changes that one."""
    return x.to_local() if isinstance(x, DTensor) else x


def gathered(x: Tensor) -> Tensor:
    """The whole of a tensor that FSDP2 may have cut, on each process; collective if it has."""
    if not isinstance(x, DTensor):
        return x
    # by the mesh, which is the same on all processes: a tensor of one row is whole on the first of them
    sizes = zip(x.placements, x.device_mesh.shape, strict=True)
    return x.full_tensor() if any(placement.is_shard() and size > 1 for placement, size in sizes) else local(x)


def shard_of(name: str, parameter: Tensor, mesh: Mesh) -> Shard:
    """The shard of the whole tensor that `parameter` holds."""
    return shard_like(name, parameter, local(parameter).detach(), mesh)


def shard_like(name: str, parameter: Tensor, tensor: Tensor, mesh: Mesh) -> Shard:
    """The shard that `tensor` is if it is sharded like `parameter`, such as optimizer state.

    Its rows may be shorter by a factor, such as those of scales of blocks.
    """
    factor = local(parameter).shape[-1] // max(1, tensor.shape[-1]) if parameter.dim() else 1
    shape = tuple(parameter.shape)
    offsets = (0,) * parameter.dim()
    if isinstance(parameter, DTensor):
        _, offsets = compute_local_shape_and_global_offset(shape, _own_mesh(parameter, mesh), parameter.placements)
    if is_stacked(name, parameter):
        first = mesh.coords.ep * shape[0]
        shape = (shape[0] * mesh.dims.ep_size, *shape[1:])
        offsets = (first + offsets[0], *offsets[1:])
    if factor > 1:
        shape = (*shape[:-1], shape[-1] // factor)
        offsets = (*offsets[:-1], offsets[-1] // factor)
    if 0 in tensor.shape:  # an empty shard: torch's offsets point beyond the end
        offsets = (0,) * len(shape)
    return Shard(tensor, shape, tuple(offsets))


def _own_mesh(parameter: DTensor, mesh: Mesh) -> DeviceMesh:
    """The mesh over which a parameter is sharded, with the place of this process.

    Torch takes a tensor's mesh from a cache, where the same ranks are the same: in a dry run it may have the place of
    another process.
    """
    own = mesh.shards_of(parameter)
    same = own is not None and torch.equal(own.mesh, parameter.device_mesh.mesh)
    return own if own is not None and same else parameter.device_mesh


def replicas_of(name: str, parameter: Tensor, mesh: Mesh) -> int:
    """Number of processes that hold the same shard."""
    return mesh.dims.expert_replicate if is_stacked(name, parameter) else mesh.dims.dp_replicate
