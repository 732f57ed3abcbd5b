"""Root-mean-square normalisation, computed in fp32."""

import torch
from torch import Tensor, nn

from seektune.kernels import upcast


def rms(x: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps)` over the last dim, without weight, in fp32."""
    x = upcast(x)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


class RMSNorm(nn.Module):
    """`weight * rms(x)` in fp32, rounded once to the dtype of `x`."""

    def __init__(self, size: int, eps: float, device: torch.device | None, dtype: torch.dtype):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dim."""
        return (upcast(self.weight) * rms(x, self.eps)).to(x.dtype)
