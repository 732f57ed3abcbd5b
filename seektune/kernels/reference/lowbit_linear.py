"""Products with frozen low-bit weights, which are dequantized in forward and again in backward.

Shapes: N rows of tokens, G groups, I inputs, O outputs, E experts.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.dequantize import dequantize
from seektune.kernels.reference.linear import grouped_linear

Product = Callable[[Tensor, Tensor], Tensor]
"""Of tokens with a matrix, as `F.linear`."""
GroupedProduct = Callable[[Tensor, Tensor, int], Tensor]
"""As `grouped_linear`."""


def lowbit_linear(x_NI: Tensor, weight: Tensor, scale: Tensor, groups: int = 1) -> Tensor:
    """`F.linear` or, with `groups`, `grouped_linear` with a low-bit weight in x's dtype; only its bytes are saved.

    The weight gets no gradient.
    """
    return lowbit_product(x_NI, weight, scale, groups, F.linear, grouped_linear)


def lowbit_product(
    x_NI: Tensor, weight: Tensor, scale: Tensor, groups: int, product: Product, grouped: GroupedProduct
) -> Tensor:
    """`lowbit_linear` by given products."""
    return _LowbitLinear.apply(x_NI, weight, scale, groups, product, grouped)


def lowbit_expert_linear(
    x_NI: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor], counts: Sequence[int]
) -> Tensor:
    """`expert_linear` with low-bit weights of E experts, dequantized one expert at a time, in x's dtype.

    Experts without tokens are not read. The weights get no gradient.
    """
    return lowbit_expert_product(x_NI, weights, scales, counts, F.linear)


def lowbit_expert_product(
    x_NI: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor], counts: Sequence[int], product: Product
) -> Tensor:
    """`lowbit_expert_linear` by a given product."""
    assert sum(counts) == x_NI.shape[0]
    busy = [expert for expert, count in enumerate(counts) if count]
    if not busy:
        return x_NI.new_zeros(0, weights[0].shape[0]) + x_NI.sum()
    used = [counts[expert] for expert in busy]
    return _LowbitExperts.apply(x_NI, used, product, *(weights[e] for e in busy), *(scales[e] for e in busy))


def gathered_lowbit_linear(x_NI: Tensor, experts_N: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """`gathered_linear` with low-bit weights of E experts, `[E, O, I]` or packed, and their scales; no gradients."""
    bytes_N = weight.view(torch.uint8).index_select(0, experts_N).view(weight.dtype)
    bits = torch.uint8 if scale.dtype == torch.float8_e8m0fnu else scale.dtype
    scale_N = scale.view(bits).index_select(0, experts_N).view(scale.dtype)
    each = zip(x_NI.unbind(), bytes_N.unbind(), scale_N.unbind(), strict=True)
    return torch.stack([F.linear(x_I, dequantize(own, factor, x_I.dtype)) for x_I, own, factor in each])


def expert_input_gradient(grad_NO: Tensor, counts: Sequence[int], packed: Sequence[Tensor]) -> Tensor:
    """`grad @ W` of each expert, `[N, I]`; `packed` is the weights, then the scales, of experts that have rows."""
    parts = zip(grad_NO.split(list(counts)), _dequantize_each(packed, grad_NO), strict=True)
    return torch.cat([part @ values for part, values in parts])


class _LowbitLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, scale, groups, product, grouped):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight, scale)
        ctx.groups = groups
        values = dequantize(weight.to(x.device), scale.to(x.device), x.dtype)
        return product(x, values) if groups == 1 else grouped(x, values, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        weight, scale = ctx.saved_tensors
        values = dequantize(weight.to(grad.device), scale.to(grad.device), grad.dtype)
        if ctx.groups == 1:
            return grad @ values, *([None] * 5)
        return torch.einsum("...go,goi->...gi", grad, values.unflatten(0, (ctx.groups, -1))), *([None] * 5)


class _LowbitExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, counts, product, *packed):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*packed)
        ctx.counts = counts
        parts = zip(x.split(counts), _dequantize_each(packed, x), strict=True)
        return torch.cat([product(part, values) for part, values in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        packed = ctx.saved_tensors  # read once: under recomputation they can be unpacked only once
        return expert_input_gradient(grad, ctx.counts, packed), None, None, *([None] * len(packed))


def _dequantize_each(packed: Sequence[Tensor], like: Tensor) -> Iterator[Tensor]:
    """The values of each expert, one after the other in the same buffer; `packed` is all weights, then all scales."""
    out: Tensor | None = None
    for weight, scale in zip(packed[: len(packed) // 2], packed[len(packed) // 2 :], strict=True):
        out = dequantize(weight.to(like.device), scale.to(like.device), like.dtype, out)
        yield out
