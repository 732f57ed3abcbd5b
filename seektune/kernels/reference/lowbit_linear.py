"""Products with frozen low-bit weights, which are dequantized in forward and again in backward.

Shapes: N rows of tokens, G groups, I inputs, O outputs, E experts.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.dequantize import dequantize
from seektune.kernels.reference.linear import grouped_linear


def lowbit_linear(x_NI: Tensor, weight: Tensor, scale: Tensor, groups: int = 1) -> Tensor:
    """`F.linear` or, with `groups`, `grouped_linear` with a low-bit weight in x's dtype; only its bytes are saved.

    The weight gets no gradient.
    """
    return _LowbitLinear.apply(x_NI, weight, scale, groups)


def lowbit_expert_linear(
    x_NI: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor], counts: Sequence[int]
) -> Tensor:
    """`expert_linear` with low-bit weights of E experts, dequantized one expert at a time, in x's dtype.

    Experts without tokens are not read. The weights get no gradient.
    """
    assert sum(counts) == x_NI.shape[0]
    busy = [expert for expert, count in enumerate(counts) if count]
    if not busy:
        return x_NI.new_zeros(0, weights[0].shape[0]) + x_NI.sum()
    used = [counts[expert] for expert in busy]
    return _LowbitExperts.apply(x_NI, used, *(weights[e] for e in busy), *(scales[e] for e in busy))


class _LowbitLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, scale, groups):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight, scale)
        ctx.groups = groups
        values = dequantize(weight.to(x.device), scale.to(x.device), x.dtype)
        return F.linear(x, values) if groups == 1 else grouped_linear(x, values, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        weight, scale = ctx.saved_tensors
        values = dequantize(weight.to(grad.device), scale.to(grad.device), grad.dtype)
        if ctx.groups == 1:
            return grad @ values, None, None, None
        return torch.einsum("...go,goi->...gi", grad, values.unflatten(0, (ctx.groups, -1))), None, None, None


class _LowbitExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, counts, *packed):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*packed)
        ctx.counts = counts
        parts = zip(x.split(counts), _dequantize_each(packed, x), strict=True)
        return torch.cat([F.linear(part, values) for part, values in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        packed = ctx.saved_tensors  # read once: under recomputation they can be unpacked only once
        parts = zip(grad.split(ctx.counts), _dequantize_each(packed, grad), strict=True)
        return torch.cat([part @ values for part, values in parts]), None, *([None] * len(packed))


def _dequantize_each(packed: Sequence[Tensor], like: Tensor) -> Iterator[Tensor]:
    """The values of each expert, one after the other in the same buffer; `packed` is all weights, then all scales."""
    out: Tensor | None = None
    for weight, scale in zip(packed[: len(packed) // 2], packed[len(packed) // 2 :], strict=True):
        out = dequantize(weight.to(like.device), scale.to(like.device), like.dtype, out)
        yield out
