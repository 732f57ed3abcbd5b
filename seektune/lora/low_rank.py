"""The trained matrices of an adapter: A and B, whose product is added to a weight.

Shapes: R rank, I inputs, O outputs, E experts, P token-expert pairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seektune.kernels import expert_linear, gathered_linear, grouped_linear, linear, lora_delta


class LowRank(nn.Module):
    """`scaling * B A x`: A is `[R, I]`, B `[O, R]`, with `groups` of inputs that share A (arXiv:2106.09685)."""

    def __init__(self, shape: tuple[int, int], rank: int, scaling: float, dropout: float, groups: int = 1):
        super().__init__()
        self.scaling = scaling
        self.dropout = dropout
        self.groups = groups
        self.A = nn.Parameter(torch.empty(rank, shape[1]))
        self.B = nn.Parameter(torch.empty(shape[0], rank))

    def forward(self, x: Tensor) -> Tensor:
        """The change of the product, in x's dtype."""
        low = linear(drop(self, x), self.A.to(x.dtype))
        high = self.B.to(x.dtype)
        return self.scaling * (linear(low, high) if self.groups == 1 else grouped_linear(low, high, self.groups))

    def delta(self) -> Tensor:
        """What is added to the weight, `[O, I]` fp32."""
        return lora_delta(self.A, self.B, self.scaling)


class ExpertLowRank(nn.Module):
    """`LowRank` of every expert: A is `[E, R, I]`, or `[R, I]` where all experts share one, and B `[E, O, R]`."""

    def __init__(self, shape: tuple[int, int, int], rank: int, scaling: float, dropout: float, shared: bool):
        super().__init__()
        experts, outputs, inputs = shape
        self.scaling = scaling
        self.dropout = dropout
        self.A = nn.Parameter(torch.empty(rank, inputs) if shared else torch.empty(experts, rank, inputs))
        self.B = nn.Parameter(torch.empty(experts, outputs, rank))

    def forward(self, x_PI: Tensor, counts: list[int]) -> Tensor:
        """The change of the products, in x's dtype."""
        x = drop(self, x_PI)
        low = self.A.to(x_PI.dtype)
        high = self.B.to(x_PI.dtype)
        inner = linear(x, low) if low.dim() == 2 else expert_linear(x, low, counts)
        return self.scaling * expert_linear(inner, high, counts)

    def gathered(self, x_PI: Tensor, experts_P: Tensor) -> Tensor:
        """The same of few pairs with these experts; without gradients, so without dropout."""
        shared = self.A.dim() == 2
        inner = linear(x_PI, self.A.to(x_PI.dtype)) if shared else gathered_linear(x_PI, experts_P, self.A)
        return self.scaling * gathered_linear(inner, experts_P, self.B)

    def delta(self, expert: int) -> Tensor:
        """What is added to one expert's weight, `[O, I]` fp32."""
        return lora_delta(self.A if self.A.dim() == 2 else self.A[expert], self.B[expert], self.scaling)


def drop(adapter: LowRank | ExpertLowRank, x: Tensor) -> Tensor:
    """Dropout of an adapter's input while it is trained: not in evaluation, which runs without gradients."""
    training = adapter.training and torch.is_grad_enabled()
    return F.dropout(x, adapter.dropout, training) if adapter.dropout else x
