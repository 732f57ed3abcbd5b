"""Hyper-connections: read in one kernel, with Sinkhorn in registers in another; write in one pass.

Shapes: N tokens, S streams (a power of two), D width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.triton.hyper_route import hyper_route
from seektune.kernels.triton.sinkhorn import sinkhorn

WIDTH = 512
"""Channels of a tile."""


def hyper_read(
    streams_NSD: Tensor,
    fn_OI: Tensor,
    base_O: Tensor,
    scale_3: Tensor,
    iterations: int,
    eps: float,
    norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.hyper_read`; tokens may have several dims."""
    y_ND, write_NS, logits_NSS = hyper_route(streams_NSD, fn_OI, base_O, scale_3, eps, norm_eps)
    return y_ND, write_NS, sinkhorn(logits_NSS, iterations, eps)


def hyper_write(streams_NSD: Tensor, y_ND: Tensor, write_NS: Tensor, mix_NSS: Tensor) -> Tensor:
    """See `reference.hyper_write`; tokens may have several dims."""
    out: Tensor = _Write.apply(*(x.contiguous() for x in (streams_NSD, y_ND, write_NS, mix_NSS)))
    return out


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(ctx, streams, y, write, mix):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(streams, y, write, mix)
        out, (size, width) = torch.empty_like(streams), streams.shape[-2:]
        if out.numel():
            grid = y.numel() // width, triton.cdiv(width, WIDTH)
            _write[grid](streams, y, write, mix, out, width, size, WIDTH)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        streams, y, write, mix = ctx.saved_tensors
        gradients, (size, width) = [torch.empty_like(x) for x in (streams, y, write, mix)], streams.shape[-2:]
        if streams.numel():
            _backward[(y.numel() // width,)](streams, y, write, mix, grad.contiguous(), *gradients, width, size, WIDTH)
        return tuple(gradients)


@triton.jit
def _streams(base, token, channel, width, S: tl.constexpr):  # type: ignore[no-untyped-def]
    """Offsets of a token's `[S, D]` values, and their mask."""
    stream = tl.arange(0, S)
    return base + (token * S + stream[:, None]) * width + channel[None, :], (channel < width)[None, :] & (stream >= 0)[
        :, None
    ]


@triton.jit
def _mixing(mix, token, S: tl.constexpr):  # type: ignore[no-untyped-def]
    """`[S, S]`: source stream by row, target stream by column."""
    stream = tl.arange(0, S)
    return tl.load(mix + (token * S + stream[:, None]) * S + stream[None, :])


@triton.jit
def _write(streams, y, write, mix, out, width, S: tl.constexpr, D: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * D + tl.arange(0, D)
    place, inside = _streams(streams, token, channel, width, S)
    weights = _mixing(mix, token, S)
    x = tl.load(place, mask=inside, other=0.0).to(weights.dtype)
    mixed = tl.sum(weights[:, :, None] * x[:, None, :], axis=0)
    branch = tl.load(y + token * width + channel, mask=channel < width, other=0.0).to(weights.dtype)
    share = tl.load(write + token * S + tl.arange(0, S))
    place, inside = _streams(out, token, channel, width, S)
    tl.store(place, (mixed + share[:, None] * branch[None, :]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    streams, y, write, mix, grad, dstreams, dy, dwrite, dmix, width, S: tl.constexpr, D: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    stream = tl.arange(0, S)
    weights = _mixing(mix, token, S)
    share = tl.load(write + token * S + stream)
    to_write = tl.zeros([S], weights.dtype)
    to_mix = tl.zeros([S, S], weights.dtype)
    for start in range(0, width, D):
        channel = start + tl.arange(0, D)
        place, inside = _streams(streams, token, channel, width, S)
        x = tl.load(place, mask=inside, other=0.0).to(weights.dtype)
        place, inside = _streams(grad, token, channel, width, S)
        above = tl.load(place, mask=inside, other=0.0).to(weights.dtype)
        branch = tl.load(y + token * width + channel, mask=channel < width, other=0.0).to(weights.dtype)
        place, inside = _streams(dstreams, token, channel, width, S)
        back = tl.sum(weights[:, :, None] * above[None, :, :], axis=1)
        tl.store(place, back.to(dstreams.dtype.element_ty), mask=inside)
        down = tl.sum(share[:, None] * above, axis=0)
        tl.store(dy + token * width + channel, down.to(dy.dtype.element_ty), mask=channel < width)
        to_write += tl.sum(above * branch[None, :], axis=1)
        to_mix += tl.sum(x[:, None, :] * above[None, :, :], axis=2)
    tl.store(dwrite + token * S + stream, to_write)
    tl.store(dmix + (token * S + stream[:, None]) * S + stream[None, :], to_mix)
