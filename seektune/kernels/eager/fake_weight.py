"""Weights rounded to the values of a low-bit checkpoint, without packing bytes, a band of the weight at a time.

Shapes: E experts, O outputs, I inputs, G groups of columns.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from seektune.kernels.reference.dequantize import FP4_GROUP, FP8_BLOCK
from seektune.kernels.reference.quantize import FP8_MAX, SMALLEST, fp4_scale, power_of_two_above, to_e4m3

BAND = 2**20
"""Approximate number of elements that are rounded at a time, whose intermediate values are fp32."""


def fake_quantize_weight(weight: Tensor, kind: str) -> Tensor:
    """See `reference.fake_quantize_weight`; the same values, to the last bit. Saves nothing for backward."""
    rounded: Tensor = _RoundedWeight.apply(weight, {"fp4": _round_fp4, "fp8": _round_fp8}[kind])
    return rounded


class _RoundedWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, rounding):  # type: ignore[no-untyped-def]
        out = torch.empty_like(weight, memory_format=torch.contiguous_format)
        matrices = weight.reshape(-1, *weight.shape[-2:])
        rounded = out.view_as(matrices)
        for band in _bands(*matrices.shape):
            rounded[band] = rounding(matrices[band].float())
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad, None


def _bands(experts: int, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Whole matrices, or rows of one that begin at a block of scales."""
    at_once = max(BAND // max(rows * columns, 1), 1)
    height = max(BAND // max(columns, 1) // FP8_BLOCK, 1) * FP8_BLOCK
    for first in range(0, experts, at_once):
        for row in range(0, rows, height):
            yield slice(first, first + at_once), slice(row, row + height)


def _round_fp8(x_EOI: Tensor) -> Tensor:
    _, rows, columns = x_EOI.shape
    padded = F.pad(x_EOI, (0, -columns % FP8_BLOCK, 0, -rows % FP8_BLOCK))
    blocks = padded.unflatten(2, (-1, FP8_BLOCK)).unflatten(1, (-1, FP8_BLOCK))
    peaks = blocks.abs().amax(dim=(2, 4), keepdim=True)
    scale = power_of_two_above((peaks / FP8_MAX).clamp(min=SMALLEST))
    rounded = to_e4m3(blocks / scale).float() * scale
    return rounded.flatten(3, 4).flatten(1, 2)[:, :rows, :columns]


def _round_fp4(x_EOI: Tensor) -> Tensor:
    """Steps of e2m1 are 1/2 below 2, 1 below 4 and 2 from there; ties go to the even code, as `round` does."""
    groups = x_EOI.unflatten(-1, (-1, FP4_GROUP))
    scale = fp4_scale(groups)
    size = (groups / scale).abs_()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    rounded = (size / step).round_().mul_(step).mul_(scale)
    return rounded.copysign_(groups).flatten(-2)
