"""Products of tokens with a matrix, in tiles of one shape: a library adds up each row of equal products alike.

Shapes: N tokens, G groups, I inputs, O outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 32
"""Tokens of a product; fewer are padded. A multiple of the rows of every library's innermost block."""


def tiled(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """`[N, O]`, in the inputs' dtype, without a gradient."""
    out_NO = x_NI.new_empty(len(x_NI), len(weight_OI))
    for start in range(0, len(x_NI), TILE):
        part = x_NI[start : start + TILE]
        out_NO[start : start + TILE] = torch.mm(F.pad(part, (0, 0, 0, TILE - len(part))), weight_OI.T)[: len(part)]
    return out_NO


def linear(x: Tensor, weight_OI: Tensor) -> Tensor:
    """See `reference.linear`."""
    out_NO: Tensor = _TiledProduct.apply(x.reshape(-1, x.shape[-1]), weight_OI)
    return out_NO.view(*x.shape[:-1], len(weight_OI))


def grouped_linear(x_NGI: Tensor, weight_OI: Tensor, groups: int) -> Tensor:
    """See `reference.grouped_linear`."""
    parts = zip(x_NGI.unbind(-2), weight_OI.chunk(groups), strict=True)
    return torch.stack([linear(x, weight) for x, weight in parts], dim=-2)


class _TiledProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_NI, weight_OI):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x_NI, weight_OI)
        return tiled(x_NI, weight_OI)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_NO):  # type: ignore[no-untyped-def]
        x_NI, weight_OI = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        return grad_NO @ weight_OI if needs_x else None, grad_NO.T @ x_NI if needs_weight else None
