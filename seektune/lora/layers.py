"""LoRA layers: frozen linear layers, experts, embedding and head with low-rank adapters.

An adapter adds `scaling * B A` to a weight W. Base weights keep their names and bytes; the fp32 weights of adapter N
are `lora.N.A` and `lora.N.B`. Shapes: R rank, I inputs, O outputs, E experts, P token-expert pairs.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seektune.kernels import (
    Rounding,
    decoded_columns,
    dequantize,
    expert_linear,
    grouped_linear,
    lora_delta,
    rounded_expert_linear,
    rounded_linear,
    upcast,
)
from seektune.lora.delta import above_zero, with_row_lengths
from seektune.model.quantized import QuantizedLinear, QuantizedMatrix


class LowRank(nn.Module):
    """`scaling * B A x` with A `[R, I]` and B `[O, R]`; `groups` of inputs share A (arXiv:2106.09685)."""

    def __init__(self, shape: tuple[int, int], rank: int, scaling: float, dropout: float, groups: int = 1):
        super().__init__()
        self.scaling = scaling
        self.dropout = dropout
        self.groups = groups
        self.A = nn.Parameter(torch.empty(rank, shape[1]))
        self.B = nn.Parameter(torch.empty(shape[0], rank))

    def forward(self, x: Tensor) -> Tensor:
        """The change of the output, in x's dtype."""
        low = F.linear(drop(self, x), self.A.to(x.dtype))
        high = self.B.to(x.dtype)
        return self.scaling * (F.linear(low, high) if self.groups == 1 else grouped_linear(low, high, self.groups))

    def delta(self) -> Tensor:
        """The change of the weight, `[O, I]` fp32."""
        return lora_delta(self.A, self.B, self.scaling)


class ExpertLowRank(nn.Module):
    """`LowRank` for every expert: A is `[E, R, I]`, or `[R, I]` if all experts share it, and B is `[E, O, R]`."""

    def __init__(self, shape: tuple[int, int, int], rank: int, scaling: float, dropout: float, shared: bool):
        super().__init__()
        experts, outputs, inputs = shape
        self.scaling = scaling
        self.dropout = dropout
        self.A = nn.Parameter(torch.empty(rank, inputs) if shared else torch.empty(experts, rank, inputs))
        self.B = nn.Parameter(torch.empty(experts, outputs, rank))

    def forward(self, x_PI: Tensor, counts: list[int]) -> Tensor:
        """The change of the outputs, in x's dtype."""
        x = drop(self, x_PI)
        low = self.A.to(x_PI.dtype)
        high = self.B.to(x_PI.dtype)
        inner = F.linear(x, low) if low.dim() == 2 else expert_linear(x, low, counts)
        return self.scaling * expert_linear(inner, high, counts)

    def delta(self, expert: int) -> Tensor:
        """The change of one expert's weight, `[O, I]` fp32."""
        return lora_delta(self.A if self.A.dim() == 2 else self.A[expert], self.B[expert], self.scaling)


class AdaptedLinear(QuantizedLinear):
    """A frozen linear layer with any number of adapters, which add up."""

    def __init__(self, base: QuantizedLinear):
        super().__init__(base.weight, base.scale, base.groups, base.wide, base.parts)
        self.lora = nn.ModuleDict()

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of the decoded weight."""
        return self.weight.shape[0], decoded_columns(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`W x` plus every adapter's change."""
        x = upcast(x) if self.wide else x
        out = self.product(x)
        for adapter in self.adapters():
            out = out + adapter(x)
        return out

    def adapters(self) -> list[LowRank]:
        """All adapters, in the order in which they were added."""
        return cast(list[LowRank], list(self.lora.values()))

    def change(self) -> Tensor:
        """The sum of all changes, `[O, I]` fp32."""
        return torch.stack([adapter.delta() for adapter in self.adapters()]).sum(dim=0)


class DoraLinear(AdaptedLinear):
    """One adapter for the direction of each row of W + B A, with a trained norm per row (DoRA, arXiv:2402.09353).

    The norm in the denominator is constant in backward, as section 4.3 of the paper proposes.
    """

    def __init__(self, base: QuantizedLinear):
        super().__init__(base)
        self.magnitude = nn.Parameter(torch.empty(self.shape[0], device=self.place))
        self.square: Tensor
        self.register_buffer("square", torch.empty(self.shape[0], device=self.place), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`magnitude * (W + B A) x / |W + B A|`, row by row."""
        x = upcast(x) if self.wide else x
        (adapter,) = self.adapters()
        factor = (self.magnitude / self.length(adapter)).to(x.dtype)
        out = self.product(x) + adapter(x)
        return out * (factor if self.groups == 1 else factor.unflatten(0, (self.groups, -1)))

    @torch.no_grad()
    def weigh(self) -> None:
        """Compute the norms of W's rows; needs the whole weight."""
        self.square.copy_(self.base_values().square().sum(dim=1))

    @torch.no_grad()
    def measure(self) -> None:
        """Initialize `magnitude` with the norms of W's rows."""
        self.weigh()
        self.magnitude.copy_(self.square.sqrt())

    def base_values(self) -> Tensor:
        """W, fp32."""
        weight, scale = self.stored()
        return weight.float() if scale is None else dequantize(weight, scale, torch.float32)

    @torch.no_grad()
    def length(self, adapter: LowRank) -> Tensor:
        """`|W + B A|` of each row without computing the sum: |W| is known, and the cross term needs W times R rows."""
        a = adapter.A
        b = adapter.scaling * adapter.B
        rows = a if self.groups == 1 else a.unsqueeze(1).expand(-1, self.groups, -1)
        cross_OR = self.product(rows).flatten(1).T
        square = self.square + 2 * (b * cross_OR).sum(dim=1) + ((b @ (a @ a.T)) * b).sum(dim=1)
        return above_zero(square.clamp(min=0).sqrt())

    @torch.no_grad()
    def change(self) -> Tensor:
        """The change of W when merged, `[O, I]` fp32."""
        (adapter,) = self.adapters()
        base = self.base_values()
        merged = self.base_values() + adapter.delta()
        return with_row_lengths(merged, self.magnitude) - base


class RoundedLinear(AdaptedLinear):
    """One adapter, trained through the rounding of the format that it will be merged into."""

    def __init__(self, base: QuantizedLinear, format: str, rounding: Rounding):
        super().__init__(base)
        self.format = format
        self.rounding = rounding

    def forward(self, x: Tensor) -> Tensor:
        """The product with the merged, rounded weight."""
        (adapter,) = self.adapters()
        weight, scale = self.stored()
        x = upcast(x) if self.wide else x
        return rounded_linear(x, weight, scale, adapter.A, adapter.B, adapter.scaling, self.rounding, self.groups)


class AdaptedMatrix(QuantizedMatrix):
    """One matrix of all routed experts with adapters."""

    def __init__(self, base: QuantizedMatrix):
        super().__init__(base.weight, base.scale, base.parts)
        self.lora = nn.ModuleDict()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Experts, outputs and inputs of the decoded weight."""
        return self.weight.shape[0], self.weight.shape[1], decoded_columns(self.weight)

    def forward(self, x_PI: Tensor, counts: list[int]) -> Tensor:
        """`W x` plus every adapter's change, for pairs sorted by expert."""
        out = super().forward(x_PI, counts)
        for adapter in self.adapters():
            out = out + adapter(x_PI, counts)
        return out

    def adapters(self) -> list[ExpertLowRank]:
        """All adapters, in the order in which they were added."""
        return cast(list[ExpertLowRank], list(self.lora.values()))

    def change(self, expert: int) -> Tensor:
        """The sum of all changes of one expert, `[O, I]` fp32."""
        return torch.stack([adapter.delta(expert) for adapter in self.adapters()]).sum(dim=0)


class RoundedMatrix(AdaptedMatrix):
    """One adapter for a matrix of all experts, trained through the rounding of the format it will be merged into."""

    def __init__(self, base: QuantizedMatrix, format: str, rounding: Rounding):
        super().__init__(base)
        self.format = format
        self.rounding = rounding

    def forward(self, x_PI: Tensor, counts: list[int]) -> Tensor:
        """The products with the merged, rounded weights."""
        (adapter,) = self.adapters()
        weights, scales = (self.weight.unbind(), None) if self.scale is None else self.experts()
        factors = adapter.A, adapter.B, adapter.scaling
        return rounded_expert_linear(x_PI, weights, scales, *factors, self.rounding, counts)


class AdaptedEmbedding(nn.Module):
    """The embedding table `[V, D]` with adapters: A is `[R, V]` and B is `[D, R]`, as in PEFT."""

    def __init__(self, base: nn.Embedding):
        super().__init__()
        self.weight = nn.Parameter(base.weight.detach(), requires_grad=False)
        self.lora = nn.ModuleDict()

    @property
    def shape(self) -> tuple[int, int]:
        """Width and vocabulary size: the table is the transpose of a linear layer on one-hot vectors."""
        return self.weight.shape[1], self.weight.shape[0]

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of the table plus every adapter's change."""
        out = F.embedding(ids, self.weight)
        for adapter in self.adapters():
            low = F.embedding(ids, adapter.A.T.to(out.dtype))
            out = out + adapter.scaling * F.linear(low, adapter.B.to(out.dtype))
        return out

    def adapters(self) -> list[LowRank]:
        """All adapters, in the order in which they were added."""
        return cast(list[LowRank], list(self.lora.values()))

    def change(self) -> Tensor:
        """The sum of all changes, `[V, D]` fp32."""
        return torch.stack([adapter.delta().T for adapter in self.adapters()]).sum(dim=0)


class AdaptedHead(AdaptedLinear):
    """The LM head, whose weight the loss uses directly, so adapter dropout does not apply."""

    def values(self) -> Tensor:
        """The weight with all changes, `[V, D]`, fp32 if there are any."""
        return upcast(self.weight) + self.change() if self.lora else self.weight


def drop(adapter: LowRank | ExpertLowRank, x: Tensor) -> Tensor:
    """Dropout of an adapter's input in training; evaluation runs without gradients and has no dropout."""
    training = adapter.training and torch.is_grad_enabled()
    return F.dropout(x, adapter.dropout, training) if adapter.dropout else x
