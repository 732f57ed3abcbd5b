"""Counts the bytes of tensors that are alive, operation by operation: what an allocator would have to give."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ENGINE = ("unshard", "wait_for_unshard", "post_backward", "reshard", "finalize_backward")
"""What FSDP2 does for itself; its buffers are no activations."""


class Live(TorchDispatchMode):
    """Bytes of the storages made inside, now and at most; neither those of `known` tensors count nor FSDP2's own.

    A storage counts from the operation that made it until the last tensor on it is gone. What an operation takes and
    frees within itself is not seen, as with any count of tensors.
    """

    def __init__(self, known: Iterable[Tensor]):
        super().__init__()
        self.now = self.peak = 0
        self.outside = 0
        self._known = {x.untyped_storage()._cdata for x in known}
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self._note(x)
        self.peak = max(self.peak, self.now)
        return result

    def _note(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self._known or key in self._sizes:
            return
        self._sizes[key] = 0 if self.outside else storage.nbytes()
        self.now += self._sizes[key]
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    @contextmanager
    def without_engine(self) -> Iterator[None]:
        """What FSDP2 makes for itself does not count."""
        with ExitStack() as stack:
            for name in ENGINE:
                stack.enter_context(patch.object(FSDPParamGroup, name, self._apart(vars(FSDPParamGroup)[name])))
            yield

    def _apart(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.outside += 1
            try:
                return method(*arguments, **options)
            finally:
                self.outside -= 1

        return call
