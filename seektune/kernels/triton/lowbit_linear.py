"""Products with frozen low-bit weights: decoded in the product for few tokens, by a kernel of their own for many.

Shapes: N rows of tokens, G groups, I inputs, O outputs, E experts.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.reference.dequantize import decoded_columns
from seektune.kernels.reference.linear import grouped_linear
from seektune.kernels.reference.lowbit_linear import expert_input_gradient
from seektune.kernels.reference.lowbit_linear import gathered_lowbit_linear as per_pair
from seektune.kernels.reference.lowbit_linear import lowbit_expert_linear as per_expert
from seektune.kernels.triton.dequantize import dequantize
from seektune.kernels.triton.expert_linear import ends, supports_grouped_mm
from seektune.kernels.triton.lowbit_grouped_mm import grouped_mm, is_fused, pair_mm

VALUES = 2**28
"""Expert weights that exist dequantized at a time: half a gigabyte of bf16."""


def lowbit_linear(x_NI: Tensor, weight: Tensor, scale: Tensor, groups: int = 1) -> Tensor:
    """See `reference.lowbit_linear`; a product with few tokens is a grouped one with one expert."""
    tokens = x_NI.numel() // x_NI.shape[-1]
    if groups == 1 and is_fused(tokens, 1, x_NI, [weight]):
        found: Tensor = _FusedMatmul.apply(x_NI.reshape(tokens, -1), [tokens], weight, scale)
        return found.view(*x_NI.shape[:-1], -1)
    out: Tensor = _LowbitMatmul.apply(x_NI, weight, scale, groups)
    return out


def lowbit_expert_linear(
    x_NI: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor], counts: Sequence[int]
) -> Tensor:
    """See `reference.lowbit_expert_linear`.

    Many pairs per expert use torch's `grouped_mm` on decoded weights, or, where it does not support the inputs, a
    product per expert.
    """
    assert sum(counts) == len(x_NI)
    busy = [expert for expert, count in enumerate(counts) if count]
    used = [counts[expert] for expert in busy]
    packed = *(weights[e] for e in busy), *(scales[e] for e in busy)
    if is_fused(len(x_NI), len(busy), x_NI, packed):
        found: Tensor = _FusedMatmul.apply(x_NI, used, *packed)
        return found
    if not _can_be_stacked(x_NI, weights[0]):
        return per_expert(x_NI, weights, scales, counts)
    out: Tensor = _LowbitExpertMatmul.apply(x_NI, used, *packed)
    return out


def gathered_lowbit_linear(x_NI: Tensor, experts_N: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """See `reference.gathered_lowbit_linear`; no matrix is copied or decoded in memory."""
    if not is_fused(len(x_NI), len(x_NI), x_NI, [weight]):
        return per_pair(x_NI, experts_N, weight, scale)
    return pair_mm(x_NI, experts_N, weight, scale)


def input_gradient(grad_PO: Tensor, counts: Sequence[int], packed: Sequence[Tensor]) -> Tensor:
    """`grad @ W` of each expert, `[P, I]`, as the backward of `lowbit_expert_linear` computes it.

    `packed` is the weights, then the scales, of experts that have rows.
    """
    experts = len(counts)
    if is_fused(len(grad_PO), experts, grad_PO, packed):
        return grouped_mm(grad_PO, packed[:experts], packed[experts:], counts, transposed=True)
    if experts == 1:
        return grad_PO @ _values(packed[0], packed[1], grad_PO)
    if not _can_be_stacked(grad_PO, packed[0]):
        return expert_input_gradient(grad_PO, counts, packed)
    batches = _expert_batches(grad_PO.contiguous(), counts, packed)
    return torch.cat([F.grouped_mm(part, values, offs=at) for part, values, at in batches])


def _can_be_stacked(x: Tensor, weight: Tensor) -> bool:
    """Whether `grouped_mm` multiplies decoded experts: FP8 scales span 128 rows, of which each needs a multiple."""
    rows = weight.shape[0]
    shape = torch.empty(1, rows, decoded_columns(weight), device="meta", dtype=x.dtype)
    return supports_grouped_mm(x, shape) and (weight.dtype == torch.int8 or rows % 128 == 0)


class _FusedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, counts, *packed):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*packed)
        ctx.counts = counts
        experts = len(counts)
        return grouped_mm(x, packed[:experts], packed[experts:], counts, transposed=False)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        packed = ctx.saved_tensors
        return input_gradient(grad, ctx.counts, packed), None, *([None] * len(packed))


class _LowbitMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, scale, groups):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight, scale)
        ctx.groups = groups
        values = _values(weight, scale, x)
        return F.linear(x, values) if groups == 1 else grouped_linear(x, values, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        values = _values(*ctx.saved_tensors, grad)
        if ctx.groups == 1:
            return grad @ values, None, None, None
        return torch.einsum("...go,goi->...gi", grad, values.unflatten(0, (ctx.groups, -1))), None, None, None


class _LowbitExpertMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, counts, *packed):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*packed)
        ctx.counts = counts
        return torch.cat(
            [F.grouped_mm(part, values.mT, offs=at) for part, values, at in _expert_batches(x, counts, packed)]
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        packed = ctx.saved_tensors
        return input_gradient(grad, ctx.counts, packed), None, *([None] * len(packed))


def _expert_batches(
    x_PI: Tensor, counts: Sequence[int], packed: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of experts: their pairs, their values `[E, O, I]`, and the end of each one's pairs."""
    weights = packed[: len(counts)]
    scales = packed[len(counts) :]
    rows = weights[0].shape[0]
    size = max(VALUES // (rows * decoded_columns(weights[0])), 1)
    begin = 0
    for first in range(0, len(counts), size):
        batch = slice(first, first + size)
        weight = torch.cat(list(weights[batch]))
        scale = torch.cat(list(scales[batch]))
        some = list(counts[batch])
        values = _values(weight, scale, x_PI).unflatten(0, (len(some), rows))
        yield x_PI[begin : begin + sum(some)], values, ends(some, x_PI.device)
        begin += sum(some)


def _values(weight: Tensor, scale: Tensor, like: Tensor) -> Tensor:
    return dequantize(weight.to(like.device).contiguous(), scale.to(like.device).contiguous(), like.dtype)
