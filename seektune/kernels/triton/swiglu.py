"""The activation of the experts in one pass each way."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.reference.precision import upcast

BLOCK = 1024


def clamped_swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """See `reference.clamped_swiglu`."""
    out: Tensor = _SwiGLU.apply(gate.contiguous(), up.contiguous(), limit)
    return out


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
def _forward(gate, up, out, size, limit, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    g = _at_most(tl.load(gate + at, mask=inside, other=0.0).to(out.dtype.element_ty), limit)
    u = tl.load(up + at, mask=inside, other=0.0).to(out.dtype.element_ty)
    u = -_at_most(-_at_most(u, limit), limit)
    tl.store(out + at, g / (1 + tl.exp(-g)) * u, mask=inside)


@triton.jit
def _backward(gate, up, grad, dgate, dup, size, limit, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    d = tl.load(grad + at, mask=inside, other=0.0)
    g_free = tl.load(gate + at, mask=inside, other=0.0).to(d.dtype)
    u_free = tl.load(up + at, mask=inside, other=0.0).to(d.dtype)
    g = _at_most(g_free, limit)
    u = -_at_most(-_at_most(u_free, limit), limit)
    sigmoid = 1 / (1 + tl.exp(-g))
    along_gate = tl.where(g_free <= limit, u * sigmoid * (1 + g * (1 - sigmoid)), 0.0)
    along_up = tl.where((u_free >= -limit) & (u_free <= limit), g * sigmoid, 0.0)
    tl.store(dgate + at, (d * along_gate).to(dgate.dtype.element_ty), mask=inside)
    tl.store(dup + at, (d * along_up).to(dup.dtype.element_ty), mask=inside)
