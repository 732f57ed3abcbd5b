"""Frozen low-bit weights multiplied out by what is fastest where they lie; the products in `reference` call it too."""

import torch
from torch import Tensor

from seektune.kernels.kernel import Kernel
from seektune.kernels.reference import multiply_out as plain

KERNEL = Kernel(plain.multiply_out, plain.multiply_out, "multiply_out")


def multiply_out(weight: Tensor, scale: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """As `reference.multiply_out`."""
    return KERNEL(weight, scale, dtype, out)
