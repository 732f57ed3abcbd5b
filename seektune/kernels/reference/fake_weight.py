"""Weights rounded to the values of a low-bit checkpoint, for training through the rounding.

Shapes: O outputs, I inputs.
"""

import torch
from torch import Tensor

from seektune.kernels.reference.dequantize import dequantize_fp4, dequantize_fp8
from seektune.kernels.reference.quantize import quantize_fp4, quantize_fp8

CODECS = {"fp4": (quantize_fp4, dequantize_fp4), "fp8": (quantize_fp8, dequantize_fp8)}
"""How an export encodes a matrix of each kind, and how loading decodes it."""


def fake_quantize_weight(weight: Tensor, kind: str) -> Tensor:
    """The values that a checkpoint would hold of a matrix `[O, I]`, or of each of `[E, O, I]`, in the weight's dtype.

    `fp4` has a power-of-two scale per row and 32 columns, `fp8` per 128 x 128 block. The gradient passes straight
    through.
    """
    rounded: Tensor = _StraightThroughWeight.apply(weight, kind)
    return rounded


class _StraightThroughWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, kind):  # type: ignore[no-untyped-def]
        encode, decode = CODECS[kind]
        matrices = weight.reshape(-1, *weight.shape[-2:])
        return torch.stack([decode(*encode(matrix)) for matrix in matrices]).to(weight.dtype).view_as(weight)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad, None
