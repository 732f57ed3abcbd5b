"""RMSNorm in one pass each way, a vector in the registers of a program.

Shapes: N vectors, C width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.reference.precision import upcast

PROGRAMS = 512
"""Most programs of backward; each sums its vectors' share of the weight's gradient."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`. Saves `x` and one number per vector."""
    out: Tensor = _RMSNormFunction.apply(x.contiguous(), weight.contiguous(), eps)
    return out


class _RMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):  # type: ignore[no-untyped-def]
        width = x.shape[-1]
        out = torch.empty_like(x)
        inverse = x.new_empty(x.shape[:-1], dtype=upcast(x[:0]).dtype)
        if x.numel():
            _forward[(x.numel() // width,)](x, weight, inverse, out, eps, width, **_tile(width))
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight, inverse = ctx.saved_tensors
        width = x.shape[-1]
        vectors = x.numel() // width
        programs = min(PROGRAMS, vectors)
        dx = torch.empty_like(x)
        parts = inverse.new_empty(programs, width)
        if programs:
            given = x, weight, inverse, grad.contiguous(), dx, parts
            _backward[(programs,)](*given, vectors, width, **_tile(width))
        return dx, parts.sum(dim=0).to(weight.dtype), None


def _tile(width: int) -> dict[str, int]:
    """Channels of a tile, and the warps that hold it in at most 32 registers of a thread for each vector."""
    return {"C": triton.next_power_of_2(width), "num_warps": 8 if width > 2048 else 4}


@triton.jit
def _forward(x, weight, inverse, out, eps, width, C: tl.constexpr):  # type: ignore[no-untyped-def]
    vector = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, C)
    inside = channel < width
    wide = inverse.dtype.element_ty
    values = tl.load(x + vector * width + channel, mask=inside, other=0.0).to(wide)
    factor = 1.0 / tl.sqrt_rn(tl.sum(values * values, axis=0) / width + eps)
    tl.store(inverse + vector, factor)
    scaled = values * factor * tl.load(weight + channel, mask=inside, other=0.0).to(wide)
    tl.store(out + vector * width + channel, scaled.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(x, weight, inverse, grad, dx, parts, vectors, width, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """The gradients of every so many vectors, and their sum for the weight."""
    program = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, C)
    inside = channel < width
    wide = inverse.dtype.element_ty
    scale = tl.load(weight + channel, mask=inside, other=0.0).to(wide)
    total = tl.zeros([C], wide)
    for vector in range(program, vectors, tl.num_programs(0)):
        factor = tl.load(inverse + vector)
        unit = tl.load(x + vector * width + channel, mask=inside, other=0.0).to(wide) * factor
        above = tl.load(grad + vector * width + channel, mask=inside, other=0.0).to(wide)
        total += above * unit
        along = tl.sum(above * unit * scale, axis=0) / width
        back = (above * scale - unit * along) * factor
        tl.store(dx + vector * width + channel, back.to(dx.dtype.element_ty), mask=inside)
    tl.store(parts + program * width + channel, total, mask=inside)
