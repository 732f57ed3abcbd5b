"""Sinkhorn with all passes in registers, one block of matrices per program.

Shapes: N matrices, S streams (a power of two), M matrices of a program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

MATRICES = 64


def sinkhorn(logits: Tensor, iterations: int, eps: float) -> Tensor:
    """See `reference.sinkhorn`; the number of streams must be a power of two."""
    size = logits.shape[-1]
    assert size & (size - 1) == 0, "Triton's tiles are powers of two"
    out: Tensor = _Sinkhorn.apply(logits.contiguous(), iterations, eps)
    return out


class _Sinkhorn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, iterations, eps):  # type: ignore[no-untyped-def]
        ctx.numbers = iterations, eps
        out = torch.empty_like(logits)
        size = logits.shape[-1]
        count = logits.numel() // size**2
        if count:
            _forward[(triton.cdiv(count, MATRICES),)](logits, out, count, iterations, eps, size, MATRICES)
        ctx.save_for_backward(logits)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (logits,) = ctx.saved_tensors
        iterations, eps = ctx.numbers
        size = logits.shape[-1]
        count = logits.numel() // size**2
        dlogits = torch.empty_like(logits)
        # the matrix before each pass, read in reverse order
        passes = logits.new_empty(2 * iterations - 1, *logits.shape)
        if count:
            grid = (triton.cdiv(count, MATRICES),)
            _backward[grid](logits, grad.contiguous(), dlogits, passes, count, iterations, eps, size, MATRICES)
        return dlogits, None, None


@triton.jit
def _offsets(count, S: tl.constexpr, M: tl.constexpr):  # type: ignore[no-untyped-def]
    matrix = tl.program_id(0) * M + tl.arange(0, M)[:, None, None]
    at = matrix * S * S + tl.arange(0, S)[None, :, None] * S + tl.arange(0, S)[None, None, :]
    return at, (matrix < count) & (at >= 0)


@triton.jit
def _softmax(x):  # type: ignore[no-untyped-def]
    x = tl.exp(x - tl.max(x, axis=2)[:, :, None])
    return x / tl.sum(x, axis=2)[:, :, None]


@triton.jit
def _forward(logits, out, count, iterations, eps, S: tl.constexpr, M: tl.constexpr):  # type: ignore[no-untyped-def]
    at, inside = _offsets(count, S, M)
    mix = _softmax(tl.load(logits + at, mask=inside, other=0.0)) + eps
    mix = mix / (tl.sum(mix, axis=1)[:, None, :] + eps)
    for _ in range(iterations - 1):
        mix = mix / (tl.sum(mix, axis=2)[:, :, None] + eps)
        mix = mix / (tl.sum(mix, axis=1)[:, None, :] + eps)
    tl.store(out + at, mix, mask=inside)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    logits, grad, dlogits, passes, count, iterations, eps, S: tl.constexpr, M: tl.constexpr
):
    at, inside = _offsets(count, S, M)
    first = _softmax(tl.load(logits + at, mask=inside, other=0.0))
    mix = first + eps
    stride = count * S * S
    tl.store(passes + at, mix, mask=inside)
    mix = mix / (tl.sum(mix, axis=1)[:, None, :] + eps)
    for step in range(iterations - 1):
        tl.store(passes + (2 * step + 1) * stride + at, mix, mask=inside)
        mix = mix / (tl.sum(mix, axis=2)[:, :, None] + eps)
        tl.store(passes + (2 * step + 2) * stride + at, mix, mask=inside)
        mix = mix / (tl.sum(mix, axis=1)[:, None, :] + eps)
    d = tl.load(grad + at, mask=inside, other=0.0)
    for back in range(iterations - 1):
        step = iterations - 2 - back
        before = tl.load(passes + (2 * step + 2) * stride + at, mask=inside, other=1.0)
        total = tl.sum(before, axis=1)[:, None, :] + eps
        d = (d - tl.sum(d * before / total, axis=1)[:, None, :]) / total
        before = tl.load(passes + (2 * step + 1) * stride + at, mask=inside, other=1.0)
        total = tl.sum(before, axis=2)[:, :, None] + eps
        d = (d - tl.sum(d * before / total, axis=2)[:, :, None]) / total
    before = tl.load(passes + at, mask=inside, other=1.0)
    total = tl.sum(before, axis=1)[:, None, :] + eps
    d = (d - tl.sum(d * before / total, axis=1)[:, None, :]) / total
    d = (d - tl.sum(d * first, axis=2)[:, :, None]) * first
    tl.store(dlogits + at, d, mask=inside)
