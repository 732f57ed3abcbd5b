"""Upcasting for computations that are fp32 in a model of any dtype."""

import torch
from torch import Tensor

WIDE = torch.float32, torch.float64


def upcast(x: Tensor) -> Tensor:
    """`x` in fp32; fp64 stays fp64, so that gradients can be checked in double precision."""
    return x if x.dtype in WIDE else x.to(torch.float32)
