"""RMSNorm and rotary position embedding, computed in fp32.

Shapes: B rows, T tokens, H heads, C head width, R rotated pairs.
"""

import torch
from torch import Tensor

from seektune.kernels.reference.precision import upcast


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`weight * x / sqrt(mean(x^2) + eps)` over the last dim in fp32, rounded once to the dtype of `x`."""
    return (upcast(weight) * _unit(x, eps)).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the last 2R columns of `x` `[..., C]` by angles `[..., R]` in fp32; pair i is columns (2i, 2i + 1)."""
    unrotated, rotated = x.split([x.shape[-1] - 2 * cos.shape[-1], 2 * cos.shape[-1]], dim=-1)
    re, im = upcast(rotated).unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack([re * cos - im * sin, re * sin + im * cos], dim=-1)
    return torch.cat([unrotated, pairs.flatten(-2).to(x.dtype)], dim=-1)


def norm_rope(x_BTHC: Tensor, cos_BTR: Tensor, sin_BTR: Tensor, eps: float) -> Tensor:
    """For queries: normalize each head without a weight, round, then rotate by its token's position."""
    return rotate(_unit(x_BTHC, eps).to(x_BTHC.dtype), cos_BTR.unsqueeze(-2), sin_BTR.unsqueeze(-2))


def _unit(x: Tensor, eps: float) -> Tensor:
    x = upcast(x)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
