"""DoRA: a frozen linear map with an adapter for the direction of each row and a trained length for each.

Shapes: R rank, I inputs, O outputs.
"""

import torch
from torch import Tensor, nn

from seektune.kernels import dequantize, upcast
from seektune.lora.delta import above_zero, with_row_lengths
from seektune.lora.layers import AdaptedLinear
from seektune.lora.low_rank import LowRank
from seektune.model.quantized import QuantizedLinear


class DoraLinear(AdaptedLinear):
    """One adapter for the direction of each row of W + B A, and a trained length for each (DoRA, arXiv:2402.09353).

    The length that is divided out is a constant in backward, as section 4.3 there proposes.
    """

    def __init__(self, base: QuantizedLinear):
        super().__init__(base)
        self.magnitude = nn.Parameter(torch.empty(self.shape[0], device=self.place))
        self.square: Tensor
        self.register_buffer("square", torch.empty(self.shape[0], device=self.place), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`magnitude * (W + B A) x / |W + B A|`, row by row."""
        if not self.adapted:
            return super().forward(x)
        x = upcast(x) if self.wide else x
        (adapter,) = self.adapters()
        factor = (self.magnitude / self.length(adapter)).to(x.dtype)
        out = self.input_product(x) + adapter(x)
        return out * (factor if self.groups == 1 else factor.unflatten(0, (self.groups, -1)))

    @torch.no_grad()
    def measure_rows(self) -> None:
        """Compute the squared lengths of W's rows; needs the whole weight."""
        self.square.copy_(self.base_values().square().sum(dim=1))

    @torch.no_grad()
    def init_magnitude(self) -> None:
        """Set the trained lengths to those of W's rows, so that nothing changes yet."""
        self.measure_rows()
        self.magnitude.copy_(self.square.sqrt())

    def base_values(self) -> Tensor:
        """W, fp32."""
        weight, scale = self.stored()
        return weight.float() if scale is None else dequantize(weight, scale, torch.float32)

    @torch.no_grad()
    def length(self, adapter: LowRank) -> Tensor:
        """`|W + B A|` of each row without the sum itself: W's part is known, and W A needs R products."""
        a = adapter.A
        b = adapter.scaling * adapter.B
        rows = a if self.groups == 1 else a.unsqueeze(1).expand(-1, self.groups, -1)
        cross_OR = self.product(rows).flatten(1).T
        square = self.square + 2 * (b * cross_OR).sum(dim=1) + ((b @ (a @ a.T)) * b).sum(dim=1)
        return above_zero(square.clamp(min=0).sqrt())

    @torch.no_grad()
    def change(self) -> Tensor:
        """What merging adds to W."""
        (adapter,) = self.adapters()
        base = self.base_values()
        merged = self.base_values() + adapter.delta()
        return with_row_lengths(merged, self.magnitude) - base
