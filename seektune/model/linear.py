"""Linear maps without bias: plain, in groups, and in fp32 whatever the model's dtype."""

import torch
from torch import Tensor, nn

from seektune.kernels import grouped_linear, linear, upcast


class Linear(nn.Linear):
    """A linear map without bias."""

    def __init__(self, inputs: int, outputs: int, device: torch.device | None, dtype: torch.dtype):
        super().__init__(inputs, outputs, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., O]`."""
        return linear(x, self.weight)


class GroupedLinear(Linear):
    """Groups of inputs side by side, each with its own rows of the weight `[G * O, I]`."""

    def __init__(self, inputs: int, outputs: int, groups: int, device: torch.device | None, dtype: torch.dtype):
        super().__init__(inputs, outputs, device, dtype)
        self.groups = groups

    def forward(self, x_BTGI: Tensor) -> Tensor:
        """`[B, T, G, O]`."""
        return grouped_linear(x_BTGI, self.weight, self.groups)


class WideLinear(Linear):
    """A linear map whose product is fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """fp32 in, fp32 out."""
        return linear(upcast(x), upcast(self.weight))
