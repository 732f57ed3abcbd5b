"""The router of hyper-connections and the vector that a layer reads, from the streams in one kernel each way.

A program visits the streams of its tokens twice, as the vector needs the router's outputs, which need all channels; no
fp32 copy of the streams is written. Shapes: N tokens, S streams (a power of two), D width, O = S * (2 + S) outputs of
the router, I = S * D inputs; tiles of M tokens, C channels and R >= O outputs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.eager.hyper import hyper_route as eager
from seektune.kernels.eager.hyper import per_output
from seektune.kernels.triton.tiles import tile

TOKENS = 16
"""Tokens of a program."""
WIDTH = 64
"""Channels of a tile."""
STEP = 32
"""Tokens that are added to the gradient of the router's weight at a time."""
SPANS = 4
"""Programs that share the tokens of that gradient, whose sums are then added."""
OPTIONS = {"num_warps": 4, "num_stages": 3}

PRECISION = tl.constexpr("tf32x3")
"""Products of fp32 as three products of tf32, on tensor cores: exact for bf16 streams but for the last bits of the
router's weights (2^-22)."""


def hyper_route(
    streams_NSD: Tensor, fn_OI: Tensor, base_O: Tensor, scale_3: Tensor, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `eager.hyper_route`; fp64 uses it."""
    if fn_OI.dtype != torch.float32:
        return eager(streams_NSD, fn_OI, base_O, scale_3, eps, norm_eps)
    tokens = streams_NSD.shape[:-2]
    inputs = (x.contiguous() for x in (streams_NSD.flatten(0, -3), fn_OI, base_O, scale_3))
    y_ND, write_NS, logits_NSS = _Route.apply(*inputs, eps, norm_eps)
    return tuple(x.view(*tokens, *x.shape[1:]) for x in (y_ND, write_NS, logits_NSS))


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx, streams, fn, base, scale, eps, norm_eps):  # type: ignore[no-untyped-def]
        tokens, n, width = streams.shape
        y = streams.new_empty(tokens, width)
        u = fn.new_empty(tokens, len(base))
        inverse = fn.new_empty(tokens)
        if tokens:
            grid = (triton.cdiv(tokens, TOKENS),)
            _read[grid](streams, fn, base, scale, y, u, inverse, eps, norm_eps, *_shape(streams, base), **OPTIONS)
        ctx.save_for_backward(streams, fn, base, scale, u, inverse)
        ctx.eps = eps
        write = torch.addcmul(base[n : 2 * n], u[:, n : 2 * n], scale[1]).sigmoid_().mul_(2)
        logits = torch.addcmul(base[2 * n :], u[:, 2 * n :], scale[2]).unflatten(1, (n, n))
        return y, write, logits

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dwrite, dmix):  # type: ignore[no-untyped-def]
        streams, fn, base, scale, u, inverse = ctx.saved_tensors
        tokens, n, _ = streams.shape
        write = torch.addcmul(base[n : 2 * n], u[:, n : 2 * n], scale[1]).sigmoid_()
        dlogits = torch.empty_like(u)
        dlogits[:, n : 2 * n] = dwrite * write * (1 - write) * 2
        dlogits[:, 2 * n :] = dmix.flatten(1)
        scales = per_output(scale, n)
        du = torch.empty_like(u)
        dstreams = torch.empty_like(streams)
        shape = _shape(streams, base)
        if tokens:
            given = streams, fn, base, scales, u, inverse, dy.contiguous(), dlogits, du, dstreams
            _read_backward[(triton.cdiv(tokens, TOKENS),)](*given, ctx.eps, *shape, **OPTIONS)
        dfn = _weight_gradient(streams, du, fn) if ctx.needs_input_grad[1] else None
        dscales = (dlogits * u).sum(dim=0)
        dscale = torch.stack([part.sum() for part in dscales.split([n, n, n * n])])
        return dstreams, dfn, dlogits.sum(dim=0), dscale, None, None


def _weight_gradient(streams: Tensor, du: Tensor, fn: Tensor) -> Tensor:
    """The gradient of the router's weight, from that of its outputs before the norm."""
    tokens, n, width = streams.shape
    parts = fn.new_empty(SPANS, *fn.shape)
    grid = triton.cdiv(fn.shape[1], WIDTH), SPANS
    _fn_gradient[grid](streams, du, parts, tokens, n * width, len(fn), tile(len(fn)), STEP, WIDTH, **OPTIONS)
    return parts.sum(dim=0)


def _shape(streams: Tensor, base: Tensor) -> tuple[int, ...]:
    """Tokens, width, outputs, streams, and the tile's outputs, tokens and channels."""
    tokens, n, width = streams.shape
    return tokens, width, len(base), n, tile(len(base)), TOKENS, WIDTH


@triton.jit
def _product(a, b):  # type: ignore[no-untyped-def]
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _rows(base, token, channel, tokens, width):  # type: ignore[no-untyped-def]
    """fp32 `[M, C]` of the rows `token` of `[tokens, width]`; 0 outside."""
    mask = (token < tokens)[:, None] & (channel < width)[None, :]
    return tl.load(base + token[:, None] * width + channel[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _of_streams(x, S: tl.constexpr, R: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first S columns of `[M, R]`, `[M, S]`."""
    same = tl.arange(0, R)[None, None, :] == tl.arange(0, S)[None, :, None]
    return tl.sum(tl.where(same, x[:, None, :], 0.0), axis=2)


@triton.jit
def _tokens_of_streams(base, token, channel, tokens, width, S: tl.constexpr):  # type: ignore[no-untyped-def]
    """fp32 `[M, S, C]` of the streams; 0 outside."""
    stream = tl.arange(0, S)
    mask = (token < tokens)[:, None, None] & (channel < width)[None, None, :]
    at = (token[:, None, None] * S + stream[None, :, None]) * width + channel[None, None, :]
    return tl.load(base + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _read(  # type: ignore[no-untyped-def]
    streams, fn, base, scale, y, u, inverse, eps, norm_eps, tokens, width, outputs,
    S: tl.constexpr, R: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    output = tl.arange(0, R)
    inputs = S * width
    sums = tl.zeros([M, R], tl.float32)
    square = tl.zeros([M, C], tl.float32)
    for start in range(0, inputs, C):
        channel = start + tl.arange(0, C)
        x = _rows(streams, token, channel, tokens, inputs)
        sums += _product(x, tl.trans(_rows(fn, output, channel, outputs, inputs)))
        square += x * x
    factor = 1.0 / tl.sqrt_rn(tl.sum(square, axis=1) / inputs + norm_eps)
    routed = sums * factor[:, None]
    some = token < tokens
    tl.store(inverse + token, factor, mask=some)
    inside = some[:, None] & (output < outputs)[None, :]
    tl.store(u + token[:, None] * outputs + output[None, :], routed, mask=inside)
    stream = tl.arange(0, S)
    logits = _of_streams(routed, S, R) * tl.load(scale) + tl.load(base + stream)[None, :]
    weights = 1.0 / (1.0 + tl.exp(-logits)) + eps
    for start in range(0, width, C):
        channel = start + tl.arange(0, C)
        x = _tokens_of_streams(streams, token, channel, tokens, width, S)
        mixed = tl.sum(x * weights[:, :, None], axis=1)
        mask = some[:, None] & (channel < width)[None, :]
        tl.store(y + token[:, None] * width + channel[None, :], mixed.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _read_backward(  # type: ignore[no-untyped-def]
    streams, fn, base, scales, u, inverse, dy, dlogits, du, dstreams, eps, tokens, width, outputs,
    S: tl.constexpr, R: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    output = tl.arange(0, R)
    stream = tl.arange(0, S)
    some = token < tokens
    along = tl.zeros([M, S], tl.float32)
    for start in range(0, width, C):
        channel = start + tl.arange(0, C)
        x = _tokens_of_streams(streams, token, channel, tokens, width, S)
        along += tl.sum(x * _rows(dy, token, channel, tokens, width)[:, None, :], axis=2)
    routed = _rows(u, token, output, tokens, outputs)
    scale = tl.load(scales + output, mask=output < outputs, other=0.0)
    logits = _of_streams(routed, S, R) * tl.load(scales) + tl.load(base + stream)[None, :]
    read = 1.0 / (1.0 + tl.exp(-logits))
    # the gradient of the first S outputs' logits, those of read, is found here
    same = output[None, None, :] == stream[None, :, None]
    own = tl.sum(tl.where(same, (along * read * (1.0 - read))[:, :, None], 0.0), axis=1)
    at = token[:, None] * outputs + output[None, :]
    inside = some[:, None] & (output < outputs)[None, :]
    given = tl.load(dlogits + at, mask=inside & (output >= S)[None, :], other=0.0)
    tl.store(dlogits + at, own, mask=inside & (output < S)[None, :])
    factor = tl.load(inverse + token, mask=some, other=0.0)
    slope = (own + given) * scale[None, :]
    # gradient of u = (fn x) / rms(x): the product's part, minus the norm's part along x
    shrink = -tl.sum(slope * routed, axis=1) * factor * factor / (S * width)
    slope = slope * factor[:, None]
    tl.store(du + at, slope, mask=inside)
    for step in range(0, S * tl.cdiv(width, C)):
        number = step % S
        channel = step // S * C + tl.arange(0, C)
        weight = tl.sum(tl.where(stream[None, :] == number, read + eps, 0.0), axis=1)
        mask = some[:, None] & (channel < width)[None, :]
        place = (token[:, None] * S + number) * width + channel[None, :]
        x = tl.load(streams + place, mask=mask, other=0.0).to(tl.float32)
        rows = output[:, None] * (S * width) + number * width + channel[None, :]
        weights = tl.load(fn + rows, mask=(output < outputs)[:, None] & (channel < width)[None, :], other=0.0)
        back = _product(slope, weights) + x * shrink[:, None]
        back += weight[:, None] * _rows(dy, token, channel, tokens, width)
        tl.store(dstreams + place, back.to(dstreams.dtype.element_ty), mask=mask)


@triton.jit
def _fn_gradient(  # type: ignore[no-untyped-def]
    streams, du, parts, tokens, inputs, outputs, R: tl.constexpr, M: tl.constexpr, C: tl.constexpr
):
    """A span's share of the gradient of some columns of the router's weight: a sum over its tokens in their order."""
    channel = tl.program_id(0) * C + tl.arange(0, C)
    output = tl.arange(0, R)
    total = tl.zeros([R, C], tl.float32)
    span = tl.cdiv(tokens, tl.num_programs(1))
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, tokens)
    for start in range(begin, end, M):
        token = start + tl.arange(0, M).to(tl.int64)
        slope = _rows(du, token, output, end, outputs)
        total += _product(tl.trans(slope), _rows(streams, token, channel, end, inputs))
    mask = (output < outputs)[:, None] & (channel < inputs)[None, :]
    place = (tl.program_id(1) * outputs + output[:, None]) * inputs + channel[None, :]
    tl.store(parts + place, total, mask=mask)
