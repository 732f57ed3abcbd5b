"""Products with a frozen weight plus a LoRA delta, rounded together as a merge stores them.

The rounding has a straight-through gradient, so A and B are trained for the merged weight. Merged values are computed
in forward and again in backward. Shapes: G groups, I inputs, O outputs, R rank, E experts, N token-expert pairs.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.dequantize import dequantize
from seektune.kernels.reference.lowbit_linear import grouped_linear
from seektune.kernels.reference.precision import upcast

Rounding = Callable[[Tensor], Tensor]
"""Rounds fp32 values `[O, I]` to those of the merged format."""


def rounded_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    a_RI: Tensor,
    b_OR: Tensor,
    scaling: float,
    rounding: Rounding,
    groups: int = 1,
) -> Tensor:
    """`round(W + scaling B A) x` in x's dtype; W is low-bit if `scale` is given. Gradients for x, A and B."""
    return _RoundedMatmul.apply(x, a_RI, b_OR, weight, scale, scaling, rounding, groups)


def rounded_expert_linear(
    x_NI: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor] | None,
    a_ERI: Tensor,
    b_EOR: Tensor,
    scaling: float,
    rounding: Rounding,
    counts: list[int],
) -> Tensor:
    """`rounded_linear` of each expert for its pairs; an A that all experts share has no expert dim."""
    parts = x_NI.split(counts)
    a = a_ERI.expand(len(counts), -1, -1)
    outputs = [
        rounded_linear(part, weights[e], None if scales is None else scales[e], a[e], b_EOR[e], scaling, rounding)
        if counts[e]
        else F.linear(F.linear(part, a[e].to(part.dtype)), b_EOR[e].to(part.dtype))
        for e, part in enumerate(parts)
    ]
    return torch.cat(outputs)


def lora_delta(a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """What an adapter adds to a weight, `scaling * B A`: `[O, I]` from A `[R, I]` and B `[O, R]`, at least fp32."""
    return scaling * (upcast(b) @ upcast(a))


class _RoundedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, a, b, weight, scale, scaling, rounding, groups):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, a, b, weight, scale)
        ctx.scaling = scaling
        ctx.rounding = rounding
        ctx.groups = groups
        values = _merged(a, b, weight, scale, scaling, rounding).to(x.dtype)
        return F.linear(x, values) if groups == 1 else grouped_linear(x, values, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, a, b, weight, scale = ctx.saved_tensors
        values = _merged(a, b, weight, scale, ctx.scaling, ctx.rounding).to(grad.dtype)
        groups = ctx.groups
        grad_NGO = grad.reshape(-1, groups, values.shape[0] // groups)
        x_NGI = x.reshape(-1, groups, values.shape[1])
        low = a.to(x.dtype)
        high = b.to(x.dtype).unflatten(0, (groups, -1))
        grad_x = torch.einsum("ngo,goi->ngi", grad_NGO, values.unflatten(0, (groups, -1)))
        grad_b = ctx.scaling * torch.einsum("ngo,ngr->gor", grad_NGO, F.linear(x_NGI, low))
        grad_a = ctx.scaling * torch.einsum("ngr,ngi->ri", torch.einsum("ngo,gor->ngr", grad_NGO, high), x_NGI)
        return grad_x.view_as(x), grad_a.to(a.dtype), grad_b.flatten(0, 1).to(b.dtype), *([None] * 5)


def _merged(a: Tensor, b: Tensor, weight: Tensor, scale: Tensor | None, scaling: float, rounding: Rounding) -> Tensor:
    base = weight.float() if scale is None else dequantize(weight.to(a.device), scale.to(a.device), torch.float32)
    return rounding(base + lora_delta(a.float(), b.float(), scaling))
