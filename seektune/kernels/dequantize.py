"""Dequantizes frozen low-bit weights by the fastest implementation of their device; `reference` products use it too."""

import torch
from torch import Tensor

from seektune.kernels.dispatch import Kernel
from seektune.kernels.reference import dequantize as plain

KERNEL = Kernel(plain.dequantize, plain.dequantize, "dequantize")


def dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """As `reference.dequantize`."""
    return KERNEL(weight, scale, dtype, out)
