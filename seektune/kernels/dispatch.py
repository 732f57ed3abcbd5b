"""An operation with several implementations, of which one is chosen by the device of its first tensor."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Generic, Literal, TypeAlias, TypeVar, TypeVarTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from seektune.kernels.cpu.library import library
from seektune.kernels.deepseek.choice import implementation
from seektune.kernels.shapes import run_on_meta

Rest = TypeVarTuple("Rest")
Result = TypeVar("Result")

CAPABILITY = (8, 0)
"""Least GPU generation for Triton kernels (bf16 products)."""

Mode: TypeAlias = Literal["usual", "training", "cpu_decode", "batch_invariant", "static"]
_mode: ContextVar[Mode] = ContextVar("mode", default="usual")


@contextmanager
def cpu_decode_kernels() -> Iterator[None]:
    """Within it, kernels run their `cpu` twins on a CPU, without gradients; nothing changes where none were compiled.

    It holds for this thread (and task) only. Values differ from those of `eager` in their last digits, so nothing that
    trains or evaluates may run in it.
    """
    unchanged = library() is None or _mode.get() == "batch_invariant"
    with torch.inference_mode(), _within(_mode.get() if unchanged else "cpu_decode"):
        yield


def training_kernels() -> AbstractContextManager[None]:
    """Within it, kernels are the same with and without gradients: a training run compares probabilities of the two.

    It holds for this thread (and task) only. Of DeepSeek's kernels those run that have all gradients that are needed.
    """
    return _within("training")


def batch_invariant_kernels(wanted: bool = True) -> AbstractContextManager[None]:
    """Within it, kernels run their `invariant` twins if `wanted`: decoding and training compute the same bits, but
    for rare roundings (`invariant.double`).

    It holds for this thread (and task) only. They are plain torch on any device, slower than the kernels that they
    replace, and precede the `cpu` twins.
    """
    return _within("batch_invariant" if wanted else _mode.get())


def static_kernels() -> AbstractContextManager[None]:
    """Within it, no kernel waits for a GPU or has a shape that depends on values, so that its work can be captured.

    It holds for this thread (and task) only.
    """
    return _within("static")


@contextmanager
def _within(mode: Mode) -> Iterator[None]:
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


def is_static() -> bool:
    """Whether `static_kernels` is in effect."""
    return _mode.get() == "static"


@dataclass(frozen=True)
class Kernel(Generic[*Rest, Result]):
    """`reference` defines the operation; a call runs `eager`, on a fit GPU the function of its name in `triton`,
    in `cpu_decode_kernels` `cpu`, in `batch_invariant_kernels` `invariant`, and in `static_kernels` nothing that waits.
    """

    reference: Callable[[Tensor, *Rest], Result]
    eager: Callable[[Tensor, *Rest], Result]
    triton: str | None = None
    """Module of `seektune.kernels.triton`, imported at the first call that needs it."""
    cpu: Callable[[Tensor, *Rest], Result | None] | None = None
    """Gives None where it does not apply."""
    invariant: Callable[[Tensor, *Rest], Result] | None = None
    """None if `eager` is batch-invariant, or if nothing that is compared with decoding uses the operation."""
    deepseek: str | None = None
    """Module of `seektune.kernels.deepseek`, which may take the place of `triton` (`deepseek.choice`)."""
    waits: bool = False
    """Whether `eager` waits for values on the host; in `static_kernels` `reference` replaces it."""
    triton_waits: bool = False
    """The same of `triton`."""

    def __call__(self, first: Tensor, *rest: *Rest) -> Result:
        """Run on the device of the first argument; where it is meta, only shapes; under transforms, the definition."""
        mode = _mode.get()
        if self.cpu is not None and mode == "cpu_decode" and first.is_cpu:
            found = self.cpu(first, *rest)
            if found is not None:
                return found
        if transformed() or isinstance(first, FakeTensor):
            return self.reference(first, *rest)
        if first.is_meta:
            return run_on_meta(self.reference, (first, *rest))
        if mode == "batch_invariant":
            return (self.invariant or self.eager)(first, *rest)
        on_gpu = self.triton is not None and first.is_cuda and triton_fits(first.device)
        if mode == "static" and (self.triton_waits if on_gpu else self.waits):
            return self.reference(first, *rest)
        if not on_gpu:
            return self.eager(first, *rest)
        if self.deepseek is None or mode == "static":
            return self.on_gpu(first, *rest)
        run = implementation(self.reference.__name__, self.deepseek, self.on_gpu, (first, *rest), mode == "training")
        result: Result = run(first, *rest)
        return result

    def on_gpu(self, first: Tensor, *rest: *Rest) -> Result:
        """Run the Triton implementation, wherever the tensors are."""
        assert self.triton is not None
        module = import_module(f"seektune.kernels.triton.{self.triton}")
        implementation: Callable[[Tensor, *Rest], Result] = vars(module)[self.reference.__name__]
        return implementation(first, *rest)


def transformed() -> bool:
    """Whether forward-mode derivatives or transforms of `torch.func` run, which only plain torch follows."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


@cache
def triton_fits(device: torch.device) -> bool:
    """Whether Triton kernels can run on a GPU: those of NVIDIA for which they are written."""
    known = find_spec("triton") is not None and torch.version.hip is None
    return known and torch.cuda.get_device_capability(device) >= CAPABILITY
