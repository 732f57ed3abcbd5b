"""TileKernels' Sinkhorn as `sinkhorn`: forward and gradient, fp32, four streams."""

from importlib import import_module

import torch
from torch import Tensor

PACKAGE = "tile_kernels"
STREAMS = 4
"""TileKernels says that only this number is guaranteed to work."""


def supports(logits: Tensor, iterations: int, eps: float) -> bool:
    """Whether the kernel takes these arguments."""
    return logits.dtype == torch.float32 and logits.shape[-2:] == (STREAMS, STREAMS) and logits.numel() > 0


def trains(logits: Tensor, iterations: int, eps: float) -> bool:
    """Whether the kernel has all gradients that training needs."""
    return True


def sinkhorn(logits: Tensor, iterations: int, eps: float) -> Tensor:
    """See `reference.sinkhorn`."""
    found: Tensor = import_module("tile_kernels.modeling.mhc.ops.sinkhorn").sinkhorn_normalize(
        logits.contiguous(), repeat=iterations, eps=eps
    )
    return found
