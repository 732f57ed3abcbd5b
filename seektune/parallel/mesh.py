"""The device mesh of a job: process groups of each axis."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from seektune.checkpoint import Ranks
from seektune.parallel.dims import ParallelDims, RankCoords
from seektune.parallel.process_group import command_group


@dataclass(frozen=True)
class Mesh:
    """The mesh as seen by this process. A single process has no axes, and sums over processes do nothing."""

    dims: ParallelDims
    rank: int
    device: torch.device
    axes: "Axes | None" = None

    @classmethod
    def alone(cls, device: torch.device | str = "cpu") -> "Mesh":
        """The mesh of one process, without torch.distributed."""
        return cls(ParallelDims(1, 1, 1, 1, 1, 1), 0, torch.device(device))

    @classmethod
    def of(cls, dims: ParallelDims, device: torch.device, control: str = "gloo") -> "Mesh":
        """The axes of a plan over the default process group, which has `dims.world` processes.

        `control` is the backend of the groups that carry decisions and checkpoints, over the hosts' memory.
        """
        if dims.world == 1:
            return cls.alone(device)
        return cls(dims, dist.get_rank(), device, Axes.of(dims, device, control))

    @property
    def coords(self) -> RankCoords:
        """Coordinates of this process."""
        return self.dims.coords(self.rank)

    @property
    def ranks(self) -> Ranks:
        """All processes, acting together on files."""
        return Ranks(None if self.axes is None else self.axes.control)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints for the job (rank 0)."""
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes."""
        return self._reduce(x, None)

    def sum_of_stage(self, x: Tensor) -> Tensor:
        """The sum over the processes of this pipeline stage."""
        return self._reduce(x, None if self.axes is None else self.axes.stage)

    def sum_of_rows(self, x: Tensor) -> Tensor:
        """The sum over the processes that have the same rows: those of a pipeline, and of the slices of a row."""
        if self.axes is None:
            return x
        x = self._reduce(x, self.axes.context) if self.dims.cp_size > 1 else x
        return self._reduce(x, self.axes.pipeline) if self.dims.pp_size > 1 else x

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def shards_of(self, parameter: Tensor) -> DeviceMesh | None:
        """The mesh over which FSDP2 shards a parameter; None if it does not.

        Not the DTensor's own, which torch may take from a cache, where meshes of the same ranks are the same.
        """
        if self.axes is None or not isinstance(parameter, DTensor):
            return None
        return self.axes.expert_shards if parameter.dim() == 3 and self.dims.ep_size > 1 else self.axes.dense

    def _reduce(self, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        if self.axes is None:
            return x
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x


@dataclass(frozen=True)
class Axes:
    """Process groups of this process."""

    pipeline: dist.ProcessGroup
    """The pipeline: processes with the other stages for the same rows."""
    stage: dist.ProcessGroup
    """All processes with the same layers."""
    context: dist.ProcessGroup
    """Context parallelism: processes that share its rows."""
    experts: dist.ProcessGroup
    """Expert parallelism: processes over which the experts of a layer are sharded."""
    dense: DeviceMesh
    """FSDP2 mesh of attention and shared parts; HSDP if it has two dims."""
    dense_fp32: DeviceMesh
    """The same processes for parameters that stay fp32, as FSDP2 needs one dtype per process group."""
    expert_shards: DeviceMesh
    """FSDP2 mesh of the experts of one expert-parallel rank; HSDP if it has two dims."""
    control: dist.ProcessGroup
    """All processes, for decisions of rank 0."""
    commands: dist.ProcessGroup
    """All processes, for the commands of rank 0 as the model decodes; between two of them any time may pass."""
    checkpoint: dist.ProcessGroup
    """All processes, for asynchronous saving."""

    @classmethod
    def of(cls, dims: ParallelDims, device: torch.device, control: str) -> "Axes":
        """Create the groups; collective."""

        def mesh(**sizes: int) -> DeviceMesh:
            return init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))

        stages = mesh(pp=dims.pp_size, stage=dims.stage_size)
        rows = mesh(pp=dims.pp_size, dp=dims.data_size, cp=dims.cp_size)
        experts = mesh(pp=dims.pp_size, replicate=dims.expert_replicate, shard=dims.expert_shard, ep=dims.ep_size)
        dense = _sharding(mesh(pp=dims.pp_size, replicate=dims.dp_replicate, shard=dims.fsdp_size), dims.dp_replicate)
        return cls(
            pipeline=stages.get_group("pp"),
            stage=stages.get_group("stage"),
            context=rows.get_group("cp"),
            experts=experts.get_group("ep"),
            dense=dense,
            dense_fp32=_with_own_groups(dense, dims, device),
            expert_shards=_sharding(experts, dims.expert_replicate),
            control=dist.new_group(backend=control),
            commands=command_group(control),
            checkpoint=dist.new_group(backend=control),
        )


def _with_own_groups(mesh: DeviceMesh, dims: ParallelDims, device: torch.device) -> DeviceMesh:
    """A copy of the mesh with its own process groups."""
    ranks = torch.arange(dims.world).view(dims.pp_size, dims.dp_replicate, dims.fsdp_size)
    shards, _ = dist.new_subgroups_by_enumeration(ranks.flatten(0, 1).tolist())
    replicas, _ = dist.new_subgroups_by_enumeration(ranks.mT.flatten(0, 1).tolist())
    groups = [replicas, shards] if mesh.ndim == 2 else [shards]
    return DeviceMesh.from_group(groups, device.type, mesh.mesh, mesh_dim_names=mesh.mesh_dim_names)


def _sharding(mesh: DeviceMesh, replicas: int) -> DeviceMesh:
    return mesh["replicate", "shard"] if replicas > 1 else mesh["shard"]
