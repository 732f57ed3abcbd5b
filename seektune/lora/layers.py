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
    fake_quantize_fp8,
    rounded_expert_linear,
    rounded_linear,
    upcast,
)
from seektune.kernels.reference.quantize import ACTIVATION_GROUP
from seektune.lora.low_rank import ExpertLowRank, LowRank
from seektune.model.quantized import QuantizedLinear, QuantizedMatrix


class AdaptedLinear(QuantizedLinear):
    """A frozen linear layer with any number of adapters, which add up."""

    adapted = True
    """False while adapters are switched off; see `state.adapters_off`."""

    def __init__(self, base: QuantizedLinear):
        super().__init__(base.weight, base.scale, base.groups, base.wide, base.parts)
        self.fp8_inputs = base.fp8_inputs
        self.lora = nn.ModuleDict()

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of the decoded weight."""
        return self.weight.shape[0], decoded_columns(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`W x` plus every adapter's change."""
        x = upcast(x) if self.wide else x
        out = self.input_product(x)
        for adapter in self.adapters() if self.adapted else ():
            out = out + adapter(x)
        return out

    def adapters(self) -> list[LowRank]:
        """All adapters, in the order in which they were added."""
        return cast(list[LowRank], list(self.lora.values()))

    def change(self) -> Tensor:
        """The sum of all changes, `[O, I]` fp32."""
        return torch.stack([adapter.delta() for adapter in self.adapters()]).sum(dim=0)


class RoundedLinear(AdaptedLinear):
    """One adapter, trained through the rounding of the format that it will be merged into."""

    def __init__(self, base: QuantizedLinear, format: str, rounding: Rounding):
        super().__init__(base)
        self.format = format
        self.rounding = rounding

    def forward(self, x: Tensor) -> Tensor:
        """The product with the merged, rounded weight."""
        if not self.adapted:
            return super().forward(x)
        (adapter,) = self.adapters()
        weight, scale = self.stored()
        x = upcast(x) if self.wide else x
        if self.rounds:
            x = fake_quantize_fp8(x, ACTIVATION_GROUP)
        return rounded_linear(x, weight, scale, adapter.A, adapter.B, adapter.scaling, self.rounding, self.groups)


class AdaptedMatrix(QuantizedMatrix):
    """One matrix of all routed experts with adapters."""

    adapted = True
    """As `AdaptedLinear.adapted`."""

    def __init__(self, base: QuantizedMatrix):
        super().__init__(base.weight, base.scale, base.parts)
        self.fp8_inputs = base.fp8_inputs
        self.lora = nn.ModuleDict()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Experts, outputs and inputs of the decoded weight."""
        return self.weight.shape[0], self.weight.shape[1], decoded_columns(self.weight)

    def forward(self, x_PI: Tensor, counts: list[int]) -> Tensor:
        """`W x` plus every adapter's change, for pairs sorted by expert."""
        out = super().forward(x_PI, counts)
        for adapter in self.adapters() if self.adapted else ():
            out = out + adapter(x_PI, counts)
        return out

    def gathered(self, x_PI: Tensor, experts_P: Tensor) -> Tensor:
        """As `QuantizedMatrix.gathered`, plus every adapter's change."""
        out = super().gathered(x_PI, experts_P)
        for adapter in self.adapters() if self.adapted else ():
            out = out + adapter.gathered(x_PI, experts_P)
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
        if not self.adapted:
            return super().forward(x_PI, counts)
        (adapter,) = self.adapters()
        weights, scales = (self.weight.unbind(), None) if self.scale is None else self.experts()
        if self.fp8_inputs and scales is not None:
            x_PI = fake_quantize_fp8(x_PI, ACTIVATION_GROUP)
        factors = adapter.A, adapter.B, adapter.scaling
        return rounded_expert_linear(x_PI, weights, scales, *factors, self.rounding, counts)


class AdaptedEmbedding(nn.Module):
    """The embedding table `[V, D]` with adapters: A is `[R, V]` and B is `[D, R]`, as in PEFT."""

    adapted = True
    """As `AdaptedLinear.adapted`."""

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
        for adapter in self.adapters() if self.adapted else ():
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
        return upcast(self.weight) + self.change() if self.lora and self.adapted else self.weight
