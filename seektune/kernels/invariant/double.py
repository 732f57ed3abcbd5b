"""Kernels in fp64, rounded once: the order of their sums changes a result in about one of 10^8 cases.

Their inputs are small beside the matrices of the model. Gradients are those of the kernel, in fp64.
"""

from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

import torch
from torch import Tensor

from seektune.kernels import eager

Rest = TypeVarTuple("Rest")
Result = TypeVar("Result")


def in_double(kernel: Callable[[Tensor, *Rest], Result]) -> Callable[[Tensor, *Rest], Result]:
    """The kernel in fp64; its results have the dtype of its first argument."""

    def run(first: Tensor, *rest: *Rest) -> Result:
        found: Any = kernel(_wide(first), *map(_wide, rest))
        return _rounded(found, first.dtype)

    return run


def hyper_read(
    streams_NSD: Tensor, fn_OI: Tensor, base_O: Tensor, scale_3: Tensor, iterations: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.hyper_read`: only the layer's input has the dtype of the streams."""
    router = fn_OI.double(), base_O.double(), scale_3.double()
    y_ND, write_NS, mix_NSS = eager.hyper_read(streams_NSD.double(), *router, iterations, eps, norm_eps)
    return y_ND.to(streams_NSD.dtype), write_NS.to(fn_OI.dtype), mix_NSS.to(fn_OI.dtype)


def _wide(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _rounded(found: Any, dtype: torch.dtype) -> Any:
    if isinstance(found, tuple):
        return tuple(_rounded(each, dtype) for each in found)
    return found.to(dtype) if isinstance(found, Tensor) and found.is_floating_point() else found
