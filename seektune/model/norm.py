"""RMSNorm, computed in fp32."""

import torch
from torch import Tensor, nn

from seektune.kernels import rms_norm


class RMSNorm(nn.Module):
    """`weight * x / sqrt(mean(x^2) + eps)` in fp32, rounded once to the dtype of `x`."""

    def __init__(self, size: int, eps: float, device: torch.device | None, dtype: torch.dtype):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dim."""
        return rms_norm(x, self.weight, self.eps)
