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
from seektune.kernels.triton.hyper_route_gradients import stream_gradients, weight_gradient
from seektune.kernels.triton.hyper_route_tiles import (
    OPTIONS,
    TOKENS,
    first_columns,
    product,
    rows_at,
    shape_of,
    streams_at,
)


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
            _read[grid](streams, fn, base, scale, y, u, inverse, eps, norm_eps, *shape_of(streams, base), **OPTIONS)
        ctx.save_for_backward(streams, fn, base, scale, u, inverse)
        ctx.eps = eps
        write = torch.addcmul(base[n : 2 * n], u[:, n : 2 * n], scale[1]).sigmoid_().mul_(2)
        logits = torch.addcmul(base[2 * n :], u[:, 2 * n :], scale[2]).unflatten(1, (n, n))
        return y, write, logits

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dwrite, dmix):  # type: ignore[no-untyped-def]
        streams, fn, base, scale, u, inverse = ctx.saved_tensors
        n = streams.shape[1]
        write = torch.addcmul(base[n : 2 * n], u[:, n : 2 * n], scale[1]).sigmoid_()
        dlogits = torch.empty_like(u)
        dlogits[:, n : 2 * n] = dwrite * write * (1 - write) * 2
        dlogits[:, 2 * n :] = dmix.flatten(1)
        inputs = streams, fn, base, per_output(scale, n), u, inverse
        dstreams, du = stream_gradients(inputs, dy.contiguous(), dlogits, ctx.eps)
        dfn = weight_gradient(streams, du, fn) if ctx.needs_input_grad[1] else None
        dscales = (dlogits * u).sum(dim=0)
        dscale = torch.stack([part.sum() for part in dscales.split([n, n, n * n])])
        return dstreams, dfn, dlogits.sum(dim=0), dscale, None, None


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
        x = rows_at(streams, token, channel, tokens, inputs)
        sums += product(x, tl.trans(rows_at(fn, output, channel, outputs, inputs)))
        square += x * x
    factor = 1.0 / tl.sqrt_rn(tl.sum(square, axis=1) / inputs + norm_eps)
    routed = sums * factor[:, None]
    some = token < tokens
    tl.store(inverse + token, factor, mask=some)
    inside = some[:, None] & (output < outputs)[None, :]
    tl.store(u + token[:, None] * outputs + output[None, :], routed, mask=inside)
    stream = tl.arange(0, S)
    logits = first_columns(routed, S, R) * tl.load(scale) + tl.load(base + stream)[None, :]
    weights = 1.0 / (1.0 + tl.exp(-logits)) + eps
    for start in range(0, width, C):
        channel = start + tl.arange(0, C)
        x = streams_at(streams, token, channel, tokens, width, S)
        mixed = tl.sum(x * weights[:, :, None], axis=1)
        mask = some[:, None] & (channel < width)[None, :]
        tl.store(y + token[:, None] * width + channel[None, :], mixed.to(y.dtype.element_ty), mask=mask)
