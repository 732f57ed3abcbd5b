"""Products of rows that are rounded to FP8 with frozen low-bit weights, on FP8 tensor cores where a GPU has them.

Shapes: P rows, sorted by expert, I inputs, O outputs, E experts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.reference.quantize import ACTIVATION_GROUP
from seektune.kernels.triton.fake_quantize import fake_quantize_fp8
from seektune.kernels.triton.fp8_grouped_mm import fp8_grouped_mm, has_fp8_products
from seektune.kernels.triton.lowbit_linear import input_gradient, lowbit_expert_linear, lowbit_linear


def fp8_linear(x_NI: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """See `reference.fp8_linear`; a grouped product with one expert."""
    rows = x_NI.numel() // x_NI.shape[-1]
    if not is_fp8(x_NI, rows, [weight, scale]):
        return lowbit_linear(fake_quantize_fp8(x_NI, ACTIVATION_GROUP), weight, scale)
    out: Tensor = _Fp8Product.apply(x_NI.reshape(rows, -1), [rows], weight, scale)
    return out.view(*x_NI.shape[:-1], -1)


def fp8_expert_linear(
    x_PI: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor], counts: Sequence[int]
) -> Tensor:
    """See `reference.fp8_expert_linear`."""
    busy = [expert for expert, count in enumerate(counts) if count]
    packed = *(weights[e] for e in busy), *(scales[e] for e in busy)
    if not is_fp8(x_PI, len(x_PI), packed):
        return lowbit_expert_linear(fake_quantize_fp8(x_PI, ACTIVATION_GROUP), weights, scales, counts)
    out: Tensor = _Fp8Product.apply(x_PI, [counts[e] for e in busy], *packed)
    return out


def is_fp8(x: Tensor, rows: int, packed: Sequence[Tensor]) -> bool:
    """Whether FP8 tensor cores are used, by GPU, dtype, size and devices only; they add fewer bits than fp32 has."""
    dtypes = (torch.bfloat16,) if x.is_cuda else (torch.bfloat16, torch.float32)
    here = all(each.device == x.device for each in packed)
    return rows > 0 and here and x.dtype in dtypes and has_fp8_products(x.device)


class _Fp8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, counts, *packed):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*packed)
        ctx.counts = counts
        return fp8_grouped_mm(x, packed[: len(counts)], packed[len(counts) :], counts)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        packed = ctx.saved_tensors
        return input_gradient(grad, ctx.counts, packed), None, *([None] * len(packed))
