"""Where the model computes in fp32 whatever its dtype is."""

import torch
from torch import Tensor

WIDE = torch.float32, torch.float64


def upcast(x: Tensor) -> Tensor:
    """`x` in fp32, or in fp64 where it already is, so that gradients can be checked in double precision."""
    return x if x.dtype in WIDE else x.to(torch.float32)
