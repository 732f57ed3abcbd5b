"""The activation of the experts in one pass each way, alone or with the weights of token-expert pairs.

Shapes: P pairs, F expert width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.reference.precision import upcast

BLOCK = 1024
"""Values that a program computes, or computes at a time for a pair."""


def clamped_swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """See `reference.clamped_swiglu`."""
    out: Tensor = _SwiGLU.apply(gate.contiguous(), up.contiguous(), limit)
    return out


def weighted_swiglu(gate_PF: Tensor, up_PF: Tensor, weights_P: Tensor, limit: float) -> Tensor:
    """See `reference.weighted_swiglu`; only the inputs are saved."""
    out: Tensor = _WeightedSwiGLU.apply(gate_PF.contiguous(), up_PF.contiguous(), weights_P.contiguous(), limit)
    return out


class _WeightedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up, weights, limit):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(gate, up, weights)
        ctx.limit = limit
        out = torch.empty_like(gate)
        pairs, width = gate.shape
        if gate.numel():
            _weighted[(pairs, triton.cdiv(width, BLOCK))](gate, up, weights, out, width, limit, BLOCK)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        gate, up, weights = ctx.saved_tensors
        dgate = torch.empty_like(gate)
        dup = torch.empty_like(up)
        dweights = torch.zeros_like(weights)
        pairs, width = gate.shape
        if gate.numel():
            given = gate, up, weights, grad.contiguous()
            _weighted_backward[(pairs,)](*given, dgate, dup, dweights, width, ctx.limit, BLOCK)
        return dgate, dup, dweights, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up, limit):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(gate, up)
        ctx.limit = limit
        out = torch.empty_like(gate, dtype=upcast(gate[:0]).dtype)
        size = gate.numel()
        if size:
            _forward[(triton.cdiv(size, BLOCK),)](gate, up, out, size, limit, BLOCK)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        gate, up = ctx.saved_tensors
        dgate = torch.empty_like(gate)
        dup = torch.empty_like(up)
        size = gate.numel()
        if size:
            _backward[(triton.cdiv(size, BLOCK),)](gate, up, grad.contiguous(), dgate, dup, size, ctx.limit, BLOCK)
        return dgate, dup, None


@triton.jit
def _at_most(x, limit):  # type: ignore[no-untyped-def]
    """Minimum that keeps NaN, which `tl.minimum` would turn into `limit`."""
    return tl.where(x > limit, limit, x)


@triton.jit
def _activate(g, u, limit):  # type: ignore[no-untyped-def]
    """The activation of values before their clamps."""
    g = _at_most(g, limit)
    return g / (1 + tl.exp(-g)) * -_at_most(-_at_most(u, limit), limit)


@triton.jit
def _slopes(g_free, u_free, limit):  # type: ignore[no-untyped-def]
    """The activation's derivatives by gate and up; 0 for clamped values."""
    g = _at_most(g_free, limit)
    u = -_at_most(-_at_most(u_free, limit), limit)
    sigmoid = 1 / (1 + tl.exp(-g))
    along_gate = tl.where(g_free <= limit, u * sigmoid * (1 + g * (1 - sigmoid)), 0.0)
    return along_gate, tl.where((u_free >= -limit) & (u_free <= limit), g * sigmoid, 0.0)


@triton.jit
def _forward(gate, up, out, size, limit, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    g = tl.load(gate + at, mask=inside, other=0.0).to(out.dtype.element_ty)
    u = tl.load(up + at, mask=inside, other=0.0).to(out.dtype.element_ty)
    tl.store(out + at, _activate(g, u, limit), mask=inside)


@triton.jit
def _backward(gate, up, grad, dgate, dup, size, limit, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    d = tl.load(grad + at, mask=inside, other=0.0)
    g = tl.load(gate + at, mask=inside, other=0.0).to(d.dtype)
    u = tl.load(up + at, mask=inside, other=0.0).to(d.dtype)
    along_gate, along_up = _slopes(g, u, limit)
    tl.store(dgate + at, (d * along_gate).to(dgate.dtype.element_ty), mask=inside)
    tl.store(dup + at, (d * along_up).to(dup.dtype.element_ty), mask=inside)


@triton.jit
def _weighted(gate, up, weights, out, width, limit, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    pair = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = pair * width + column
    weight = tl.load(weights + pair)
    g = tl.load(gate + at, mask=column < width, other=0.0).to(weight.dtype)
    u = tl.load(up + at, mask=column < width, other=0.0).to(weight.dtype)
    tl.store(out + at, (weight * _activate(g, u, limit)).to(out.dtype.element_ty), mask=column < width)


@triton.jit
def _weighted_backward(  # type: ignore[no-untyped-def]
    gate, up, weights, grad, dgate, dup, dweights, width, limit, BLOCK: tl.constexpr
):
    pair = tl.program_id(0).to(tl.int64)
    weight = tl.load(weights + pair)
    total = tl.zeros([BLOCK], weight.dtype)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        at = pair * width + column
        inside = column < width
        g = tl.load(gate + at, mask=inside, other=0.0).to(weight.dtype)
        u = tl.load(up + at, mask=inside, other=0.0).to(weight.dtype)
        d = tl.load(grad + at, mask=inside, other=0.0).to(weight.dtype)
        total += d * _activate(g, u, limit)
        along_gate, along_up = _slopes(g, u, limit)
        tl.store(dgate + at, (d * weight * along_gate).to(dgate.dtype.element_ty), mask=inside)
        tl.store(dup + at, (d * weight * along_up).to(dup.dtype.element_ty), mask=inside)
    tl.store(dweights + pair, tl.sum(total, axis=0))
