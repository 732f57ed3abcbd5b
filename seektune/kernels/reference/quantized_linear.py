"""Products of tokens sorted by expert with stacked low-bit expert matrices.

Shapes: P token-expert pairs, E experts, I inputs, O outputs.
"""

import torch
from torch import Tensor

from seektune.kernels.reference.dequantize import dequantize_fp4, dequantize_fp8
from seektune.kernels.reference.expert_linear import expert_linear


def quantized_expert_linear(x_PI: Tensor, weight: Tensor, scale: Tensor, counts: list[int]) -> Tensor:
    """`[P, O]`: `expert_linear` with frozen FP4 (int8 `[E, O, I/2]`) or FP8 (e4m3 `[E, O, I]`) matrices.

    Scales are per row and 32 columns, or per 128 x 128 block. Values are rounded to the dtype of `x`, the only argument
    that gets a gradient.
    """
    dequantize = dequantize_fp8 if weight.dtype == torch.float8_e4m3fn else dequantize_fp4
    values = torch.stack([dequantize(w, s) for w, s in zip(weight, scale, strict=True)])
    return expert_linear(x_PI, values.to(x_PI.dtype), counts)
