"""Simulates one rank of a job of any size: a fake process group, and tensors on meta."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch._ops import OpOverload
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

OnCollective = Callable[[OpOverload, tuple[Any, ...]], None]
"""Called with each collective operation and its arguments."""

BETWEEN = ("c10d", "_c10d_functional")
"""Namespaces of communication operations."""
META = torch.device("meta")


@contextmanager
def fake_process_group(rank: int, world: int) -> Iterator[None]:
    """A fake process group in which this process is `rank` of `world`; collectives do nothing and return at once."""
    # "fake" is imported with FakeStore; tensors on the meta device need it too
    dist.init_process_group("cpu:fake,meta:fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def meta_tensors(on_collective: OnCollective) -> Iterator[None]:
    """All new tensors are on the meta device, whatever device is asked for.

    FSDP2 refuses meta parameters, because weights may have been left unloaded; here that check is off. (FakeTensorMode,
    which FSDP2 accepts, takes ten times as long.) The meta device has no random generator: the CPU's is used.
    """
    generator = torch.Generator
    with (
        patch.object(FSDPParamGroup, "_validate_no_meta_params", lambda group: None),
        patch.object(FSDPParamGroup, "_validate_cpu_offload_params", lambda group: None),
        patch.object(torch, "Generator", lambda device: generator()),
        _MetaTensorMode(on_collective),
    ):
        yield


def is_shape_handshake(x: Tensor) -> bool:
    """Whether this is the flag with which pipeline stages agree before their first step that shapes are known."""
    return x.dtype == torch.int32 and x.numel() == 1


class _MetaTensorMode(TorchDispatchMode):
    """Redirects factory functions to meta, reports communication operations, and caches shapes.

    torch infers many shapes in Python; a pure operation whose arguments had these shapes before is not asked again,
    which makes a step four times as fast.
    """

    def __init__(self, on_collective: OnCollective):
        super().__init__()
        self._on_collective = on_collective
        self._pure: dict[OpOverload, bool] = {}
        self._known: dict[object, tuple[torch.Size, tuple[int, ...], torch.dtype] | None] = {}

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if "device" in named:
            named = {**named, "device": META}
        if func.namespace in BETWEEN:
            self._on_collective(func, args)
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta and is_shape_handshake(args[0]):
            return 1  # every stage agrees
        if func is torch.ops.aten.lift_fresh.default and args[0].dim() > 0:
            return torch.empty_like(
                args[0], device=META
            )  # created from numbers; a scalar, such as a step count, keeps its value
        if func not in self._pure:
            self._pure[func] = _is_pure(func)
        if types or not self._pure[func]:  # types: wrapper tensors such as DTensor
            return func(*args, **named)
        return self._remembered(func, args, named)

    def _remembered(self, func: OpOverload, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        key = (func, _form(args), _form(tuple(named.items())))
        if (known := self._known.get(key)) is not None:
            return torch.empty_strided(known[0], known[1], dtype=known[2], device=META)
        out = func(*args, **named)
        self._known[key] = (out.shape, out.stride(), out.dtype) if out.is_meta else None
        return out


def _is_pure(func: OpOverload) -> bool:
    """Whether an operation returns one new tensor whose shape depends only on its arguments' shapes."""
    returns = func._schema.returns
    arguments = func._schema.arguments
    fresh = len(returns) == 1 and str(returns[0].type) == "Tensor" and returns[0].alias_info is None
    return func.namespace == "aten" and fresh and not any(argument.alias_info for argument in arguments)


def _form(x: Any) -> object:
    """Everything that the shape of a result can depend on."""
    if isinstance(x, Tensor):
        return x.shape, x.stride(), x.dtype, x.device
    return tuple(map(_form, x)) if isinstance(x, (list, tuple)) else (type(x), x)
