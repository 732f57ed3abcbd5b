"""Rotation of all heads, with and without normalization, in one pass each way.

Shapes: B rows, T tokens, H heads, C width, R rotated pairs; V vectors: the heads of all tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.eager.norm import rotate as eager_rotate
from seektune.kernels.reference.precision import upcast

VECTORS = 8
"""Vectors of a program."""


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `reference.rotate`; tensors without a head dim are small and use `eager`."""
    if x.dim() != 4 or cos.shape[:-1] != (*x.shape[:2], 1) or not x.numel():
        return eager_rotate(x, cos, sin)
    out: Tensor = _Rotate.apply(x.contiguous(), cos.contiguous(), sin.contiguous())
    return out


def norm_rope(x_BTHC: Tensor, cos_BTR: Tensor, sin_BTR: Tensor, eps: float) -> Tensor:
    """See `reference.norm_rope`. Saves the result, which attention saves too, instead of `x`."""
    out: Tensor = _NormRope.apply(x_BTHC.contiguous(), cos_BTR.contiguous(), sin_BTR.contiguous(), eps)
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(cos, sin)
        out = torch.empty_like(x)
        _rotate[_grid(x)](x, cos, sin, cos, out, 0.0, *_shape(x, cos), UNIT=False)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        cos, sin = ctx.saved_tensors
        grad = grad.contiguous()
        out = torch.empty_like(grad)
        _rotate[_grid(grad)](grad, cos, -sin, cos, out, 0.0, *_shape(grad, cos), UNIT=False)
        return out, None, None


class _NormRope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin, eps):  # type: ignore[no-untyped-def]
        out = torch.empty_like(x)
        inverse = x.new_empty(x.shape[:-1], dtype=upcast(x[:0]).dtype)
        if x.numel():
            _rotate[_grid(x)](x, cos, sin, inverse, out, eps, *_shape(x, cos), UNIT=True)
        ctx.save_for_backward(out, inverse, cos, sin)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        out, inverse, cos, sin = ctx.saved_tensors
        dx = torch.empty_like(out)
        if out.numel():
            _backward[_grid(out)](out, grad.contiguous(), inverse, cos, sin, dx, *_shape(out, cos))
        return dx, None, None, None


def _grid(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.shape[:-1].numel(), VECTORS),)


def _shape(x: Tensor, cos: Tensor) -> tuple[int, int, int, int, int, int]:
    """Vectors, heads, width, rotated pairs, and the tile's channels and vectors."""
    width = x.shape[-1]
    return x.shape[:-1].numel(), x.shape[2], width, cos.shape[-1], triton.next_power_of_2(width), VECTORS


@triton.jit
def _angles(cos, sin, vector, channel, some, heads, width, pairs):  # type: ignore[no-untyped-def]
    """Factors of a channel and of its pair's other channel, `[V, C]`: cos and ±sin, or 1 and 0 where not rotated."""
    place = channel - (width - 2 * pairs)
    at = (vector // heads)[:, None] * pairs + (tl.maximum(place, 0) // 2)[None, :]
    turned = some & (place >= 0)[None, :]
    c = tl.load(cos + at, mask=turned, other=1.0)
    s = tl.load(sin + at, mask=turned, other=0.0)
    return c, tl.where((place % 2 == 0)[None, :], -s, s)


@triton.jit
def _rotate(  # type: ignore[no-untyped-def]
    x, cos, sin, inverse, out, eps, vectors, heads, width, pairs,
    C: tl.constexpr, ROWS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    vector = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, C)
    start = width - 2 * pairs
    # the other channel of a pair, which begins at `start`
    partner = tl.where(channel >= start, start + ((channel - start) ^ 1), channel)
    some = (vector < vectors)[:, None] & (channel < width)[None, :]
    c, s = _angles(cos, sin, vector, channel, some, heads, width, pairs)
    own = tl.load(x + vector[:, None] * width + channel[None, :], mask=some, other=0.0)
    other = tl.load(x + vector[:, None] * width + partner[None, :], mask=some, other=0.0)
    wide = c.dtype
    if UNIT:
        square = tl.sum(own.to(wide) * own.to(wide), axis=1)
        factor = 1.0 / tl.sqrt_rn(square / width + eps)
        tl.store(inverse + vector, factor, mask=vector < vectors)
        # rounded before the rotation, as in the reference
        own = (own.to(wide) * factor[:, None]).to(own.dtype)
        other = (other.to(wide) * factor[:, None]).to(other.dtype)
    turned = own.to(wide) * c + other.to(wide) * s
    tl.store(out + vector[:, None] * width + channel[None, :], turned.to(out.dtype.element_ty), mask=some)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    out, grad, inverse, cos, sin, dx, vectors, heads, width, pairs, C: tl.constexpr, ROWS: tl.constexpr
):
    vector = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, C)
    start = width - 2 * pairs
    partner = tl.where(channel >= start, start + ((channel - start) ^ 1), channel)
    some = (vector < vectors)[:, None] & (channel < width)[None, :]
    c, s = _angles(cos, sin, vector, channel, some, heads, width, pairs)
    here = vector[:, None] * width + channel[None, :]
    there = vector[:, None] * width + partner[None, :]
    unit = tl.load(out + here, mask=some, other=0.0).to(c.dtype)
    above = tl.load(grad + here, mask=some, other=0.0)
    # rotated vector · gradient = vector · (gradient rotated back)
    along = (tl.sum(unit * above.to(c.dtype), axis=1) / width)[:, None]
    factor = tl.load(inverse + vector, mask=vector < vectors, other=0.0)[:, None]
    # rotating back does not restore the length, which rounded angles change a little
    length = c * c + s * s
    other = tl.load(out + there, mask=some, other=0.0).to(c.dtype)
    above_other = tl.load(grad + there, mask=some, other=0.0).to(c.dtype)
    own = (above.to(c.dtype) - unit / length * along) * factor
    other = (above_other - other / length * along) * factor
    tl.store(dx + here, (own * c - other * s).to(dx.dtype.element_ty), mask=some)
