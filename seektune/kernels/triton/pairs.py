"""Rows of tokens for token-expert pairs, and sums of the pairs of each token, in one pass and in the order of pairs.

Shapes: N tokens, P token-expert pairs sorted by expert, D width.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.reference.pairs import add_pairs as plain_add_pairs

WIDTH = 1024
"""Channels of a program."""


@dataclass(frozen=True)
class PairPlan:
    """Where the pairs of each token are."""

    tokens_P: Tensor
    order_P: Tensor
    """Pairs by token, those of a token in the order of experts."""
    starts: Tensor
    """Where each token's pairs begin in `order`, and the end of the last one's, `[N + 1]`."""

    @classmethod
    def of(cls, tokens_P: Tensor, tokens: int) -> "PairPlan":
        """The plan of pairs with these tokens; nothing here waits for the GPU."""
        by_token, order = tokens_P.sort(stable=True)
        return cls(tokens_P, order, torch.searchsorted(by_token, torch.arange(tokens + 1, device=tokens_P.device)))

    def sums(self, rows_PD: Tensor) -> Tensor:
        """The fp32 sum of each token's rows, `[N, D]`; 0 for a token without pairs."""
        tokens = len(self.starts) - 1
        width = rows_PD.shape[1]
        out = rows_PD.new_empty(tokens, width, dtype=torch.float32)
        if out.numel():
            grid = tokens, triton.cdiv(width, WIDTH)
            _sums[grid](rows_PD.contiguous(), self.order_P, self.starts, out, width, WIDTH)
        return out


def gather_tokens(x_ND: Tensor, tokens_P: Tensor) -> Tensor:
    """See `reference.gather_tokens`; gradients of a token's pairs are added in fp32."""
    if x_ND.dtype not in (torch.bfloat16, torch.float32):
        return x_ND[tokens_P]
    return gather_planned(x_ND, PairPlan.of(tokens_P, len(x_ND)))


def add_pairs(rows_PD: Tensor, tokens_P: Tensor, tokens: int) -> Tensor:
    """See `reference.add_pairs`, which fp64 uses; tokens may have any number of pairs."""
    if rows_PD.dtype not in (torch.bfloat16, torch.float32):
        return plain_add_pairs(rows_PD, tokens_P, tokens)
    return add_planned(rows_PD, PairPlan.of(tokens_P, tokens))


def gather_planned(x_ND: Tensor, plan: PairPlan) -> Tensor:
    """`gather_tokens` by a plan."""
    rows: Tensor = _Gather.apply(x_ND, plan)
    return rows


def add_planned(rows_PD: Tensor, plan: PairPlan) -> Tensor:
    """`add_pairs` by a plan."""
    sums: Tensor = _Add.apply(rows_PD, plan)
    return sums


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, plan):  # type: ignore[no-untyped-def]
        ctx.plan = plan
        return x.index_select(0, plan.tokens_P)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return ctx.plan.sums(grad).to(grad.dtype), None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, plan):  # type: ignore[no-untyped-def]
        ctx.plan = plan
        ctx.dtype = rows.dtype
        return plan.sums(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        # rounded before it is copied to the pairs
        return grad.to(ctx.dtype).index_select(0, ctx.plan.tokens_P), None


@triton.jit
def _sums(rows, order, starts, out, width, C: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    inside = channel < width
    total = tl.zeros([C], tl.float32)
    for place in range(tl.load(starts + token), tl.load(starts + token + 1)):
        pair = tl.load(order + place)
        total += tl.load(rows + pair * width + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * width + channel, total, mask=inside)
