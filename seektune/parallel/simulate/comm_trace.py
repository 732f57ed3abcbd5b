"""Trace of the collectives of one process in a step, recorded at torch's dispatcher."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._ops import OpOverload
from torch.distributed import ProcessGroup
from torch.distributed._tools.fake_collectives import CollectiveOp
from torch.distributed.device_mesh import DeviceMesh

from seektune.parallel.mesh import Axes
from seektune.parallel.simulate.fake_backend import is_shape_handshake

c10d = torch.ops.c10d
functional = torch.ops._c10d_functional

SHARES: dict[str, Callable[[int], float]] = {
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
    "broadcast": lambda n: 1,
    "send": lambda n: 1,
    "recv": lambda n: 0,
}
"""Share of a payload that each of n processes sends, by ring algorithms; its own part is not sent."""

FSDP = ("fsdp", "fsdp fp32", "fsdp experts")
COPIES = ("fsdp copies", "fsdp fp32 copies", "fsdp experts copies")
"""Axes that FSDP2 uses: for shards, and for replicas of them."""


@dataclass(frozen=True)
class Operation:
    """A communication operation."""

    kind: str
    axes: tuple[str, ...]
    """Along which it is used. Axes with the same processes share a group, so that this tells them apart."""
    payload: Callable[[Any], Tensor | list[Tensor]]
    """Payload from its arguments: the larger of input and output; of an all-to-all the input."""
    float_axes: tuple[str, ...] = ()
    """Along which it is used for floating-point payloads, if along others."""


OPERATIONS = {
    c10d._allgather_base_.default: Operation("all_gather", FSDP, lambda args: args[0]),
    c10d._reduce_scatter_base_.default: Operation("reduce_scatter", FSDP, lambda args: args[1]),
    c10d.allreduce_.default: Operation("all_reduce", (*COPIES, "world"), lambda args: args[0]),
    c10d.alltoall_base_.default: Operation("all_to_all", ("ep",), lambda args: args[1], float_axes=FSDP),
    c10d.broadcast_.default: Operation("broadcast", COPIES, lambda args: args[0]),
    c10d.send.default: Operation("send", ("pp",), lambda args: args[0]),
    c10d.recv_.default: Operation("recv", ("pp",), lambda args: args[0]),
    functional.all_to_all_single.default: Operation("all_to_all", ("ep", "cp"), lambda args: args[0]),
    functional.all_gather_into_tensor.default: Operation("all_gather", ("cp",), lambda args: [args[0]] * args[1]),
    functional.reduce_scatter_tensor.default: Operation("reduce_scatter", ("cp",), lambda args: args[0]),
}
"""Those that this project and torch use. c10d's all-to-all carries counts, or an optimizer's matrices."""

SILENT = (functional.wait_tensor.default, functional._wrap_tensor_autograd.default)
"""Operations that send no payload."""


@dataclass(frozen=True)
class Flow:
    """All collectives of one kind along one axis."""

    kind: str
    axis: str
    processes: int
    count: int
    bytes: int
    """Payload: what is gathered, what is to be reduced or exchanged, what is sent or received. Counted."""
    sent: int
    """Bytes that this process sends, from `SHARES`. Computed."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class CommTrace:
    """Counts collectives and adds up their bytes."""

    def __init__(self, axes: Axes | None):
        self._names = {} if axes is None else group_axes(axes)
        self._count: Counter[tuple[str, str, int]] = Counter()
        self._bytes: Counter[tuple[str, str, int]] = Counter()

    def record(self, func: OpOverload, args: tuple[Any, ...]) -> None:
        """Count one operation."""
        if func in SILENT:
            return
        assert func in OPERATIONS, f"{func} is not known here"
        operation = OPERATIONS[func]
        payload = operation.payload(args)
        tensors = [payload] if isinstance(payload, Tensor) else payload
        if is_shape_handshake(tensors[0]):
            return
        group: ProcessGroup = CollectiveOp.get_process_group(func, args)
        used = (operation.float_axes if tensors[0].is_floating_point() else ()) or operation.axes
        axes = [axis for axis in used if axis in self._names[str(group.group_name)]]
        key = (operation.kind, " or ".join(axes), group.size())
        self._count[key] += 1
        self._bytes[key] += sum(x.numel() * x.element_size() for x in tensors)

    def flows(self) -> list[Flow]:
        """The totals, the largest first."""
        return sorted(self._flows(), key=lambda flow: (-flow.bytes, flow.kind, flow.axis))

    def _flows(self) -> Iterator[Flow]:
        for (kind, axis, size), count in self._count.items():
            total = self._bytes[kind, axis, size]
            yield Flow(kind, axis, size, count, total, round(total * SHARES[kind](size)))


def group_axes(axes: Axes) -> dict[str, list[str]]:
    """The axis of each process group, by the group's name."""
    world = dist.group.WORLD
    assert world is not None
    meshes = {"fsdp": axes.dense, "fsdp fp32": axes.dense_fp32}
    if axes.experts.size() > 1:  # else experts are cut as everything is
        meshes["fsdp experts"] = axes.expert_shards
    plain = {"pp": axes.pipeline, "cp": axes.context, "ep": axes.experts, "world": world}
    names: dict[str, list[str]] = {}
    for name, group in (*plain.items(), *(pair for each in meshes.items() for pair in _groups(*each))):
        names.setdefault(str(group.group_name), []).append(name)
    return names


def _groups(name: str, mesh: DeviceMesh) -> Iterator[tuple[str, ProcessGroup]]:
    yield name, mesh.get_group("shard")
    if mesh.ndim == 2:
        yield f"{name} copies", mesh.get_group("replicate")
