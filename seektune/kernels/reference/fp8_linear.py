"""Products with frozen low-bit weights whose inputs are rounded to FP8, as serving multiplies them.

Inputs are e4m3 with a power of two per row and 128 columns (official `act_quant` before `fp8_gemm` and `fp4_gemm`).
Shapes: N rows of tokens, I inputs, O outputs, E experts.
"""

from collections.abc import Sequence

from torch import Tensor

from seektune.kernels.reference.lowbit_linear import lowbit_expert_linear, lowbit_linear
from seektune.kernels.reference.quantize import ACTIVATION_GROUP, fake_quantize_fp8


def fp8_linear(x_NI: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """`lowbit_linear` of rounded rows; the gradient passes straight through the rounding."""
    return lowbit_linear(fake_quantize_fp8(x_NI, ACTIVATION_GROUP), weight, scale)


def fp8_expert_linear(
    x_NI: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor], counts: Sequence[int]
) -> Tensor:
    """`lowbit_expert_linear` of rounded rows; the gradient passes straight through the rounding."""
    return lowbit_expert_linear(fake_quantize_fp8(x_NI, ACTIVATION_GROUP), weights, scales, counts)
