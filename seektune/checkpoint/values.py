"""Comparing numbers across dtypes."""

import math

import torch
from torch import Tensor


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers, whatever their dtypes; NaN equals NaN."""
    x, y = _in_common(a, b)
    return torch.equal(x, y) or bool(_agree(x, y).all())


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape; infinite where only one is NaN or infinite."""
    x, y = _in_common(a, b)
    difference = torch.where(_agree(x, y), 0.0, (x.double() - y.double()).abs())
    return difference.nan_to_num(nan=math.inf, posinf=math.inf).amax().item() if difference.numel() else 0.0


def _in_common(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype that holds either exactly."""
    common = torch.promote_types(a.dtype, b.dtype)
    if a.is_floating_point() != b.is_floating_point():
        common = torch.float64
    return a.to(common), b.to(common)


def _agree(x: Tensor, y: Tensor) -> Tensor:
    return (x == y) | (x.isnan() & y.isnan())
