"""Gradients of the router of hyper-connections and of the vector that a layer reads.

Shapes: as `hyper_route`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from seektune.kernels.triton.hyper_route_tiles import (
    OPTIONS,
    TOKENS,
    WIDTH,
    first_columns,
    product,
    rows_at,
    shape_of,
    streams_at,
)
from seektune.kernels.triton.tiles import tile

STEP = 32
"""Tokens that are added to the gradient of the router's weight at a time."""
SPANS = 4
"""Programs that share the tokens of that gradient, whose sums are then added."""


def stream_gradients(inputs: tuple[Tensor, ...], dy: Tensor, dlogits: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of the streams and of the router's outputs before the norm.

    Args:
        inputs: streams, weight of the router, its bases, scales of its outputs, outputs, and the inverse of the norm.
        dy: gradient of the vector that the layer reads.
        dlogits: gradient of the router's logits, in which those of the vector's weights are set here.
        eps: added to the vector's weights.
    """
    streams, _, base, _, u, _ = inputs
    du = torch.empty_like(u)
    dstreams = torch.empty_like(streams)
    if len(streams):
        grid = (triton.cdiv(len(streams), TOKENS),)
        _read_backward[grid](*inputs, dy, dlogits, du, dstreams, eps, *shape_of(streams, base), **OPTIONS)
    return dstreams, du


def weight_gradient(streams: Tensor, du: Tensor, fn: Tensor) -> Tensor:
    """The gradient of the router's weight, from that of its outputs before the norm."""
    tokens, n, width = streams.shape
    parts = fn.new_empty(SPANS, *fn.shape)
    grid = triton.cdiv(fn.shape[1], WIDTH), SPANS
    _fn_gradient[grid](streams, du, parts, tokens, n * width, len(fn), tile(len(fn)), STEP, WIDTH, **OPTIONS)
    return parts.sum(dim=0)


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
        x = streams_at(streams, token, channel, tokens, width, S)
        along += tl.sum(x * rows_at(dy, token, channel, tokens, width)[:, None, :], axis=2)
    routed = rows_at(u, token, output, tokens, outputs)
    scale = tl.load(scales + output, mask=output < outputs, other=0.0)
    logits = first_columns(routed, S, R) * tl.load(scales) + tl.load(base + stream)[None, :]
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
        back = product(slope, weights) + x * shrink[:, None]
        back += weight[:, None] * rows_at(dy, token, channel, tokens, width)
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
        slope = rows_at(du, token, output, end, outputs)
        total += product(tl.trans(slope), rows_at(streams, token, channel, end, inputs))
    mask = (output < outputs)[:, None] & (channel < inputs)[None, :]
    place = (tl.program_id(1) * outputs + output[:, None]) * inputs + channel[None, :]
    tl.store(parts + place, total, mask=mask)
