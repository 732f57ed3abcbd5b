"""Dequantizes frozen low-bit weights by the fastest implementation of their device; `reference` products use it too."""

import torch
from torch import Tensor

from seektune.kernels.dispatch import Kernel, is_static
from seektune.kernels.reference import dequantize as plain

KERNEL = Kernel(plain.dequantize, plain.dequantize, "dequantize")


def dequantize(weight: Tensor, scale: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """As `reference.dequantize`; in `static_kernels` without looking at the scales."""
    if is_static() and weight.is_cpu and weight.dtype == torch.float8_e4m3fn:
        values = plain.dequantize_fp8(weight, scale).to(dtype)
        return values if out is None else out.copy_(values)
    return KERNEL(weight, scale, dtype, out)
