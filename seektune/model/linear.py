"""Linear layers without bias: plain, grouped, and in fp32 in a model of any dtype."""

import torch
from torch import Tensor, nn

from seektune.kernels import grouped_linear, linear, upcast


class Linear(nn.Linear):
    """A linear layer without bias."""

    def __init__(self, inputs: int, outputs: int, device: torch.device | None, dtype: torch.dtype):
        super().__init__(inputs, outputs, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., O]`."""
        return linear(x, self.weight)


class GroupedLinear(Linear):
    """A linear layer per group of inputs, each with its own rows of the weight `[G * O, I]`."""

    def __init__(self, inputs: int, outputs: int, groups: int, device: torch.device | None, dtype: torch.dtype):
        super().__init__(inputs, outputs, device, dtype)
        self.groups = groups

    def forward(self, x_BTGI: Tensor) -> Tensor:
        """`[B, T, G, O]`."""
        return grouped_linear(x_BTGI, self.weight, self.groups)


class WideLinear(Linear):
    """A linear layer that computes in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """`[..., O]` in fp32."""
        return linear(upcast(x), upcast(self.weight))
