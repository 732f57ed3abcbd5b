"""Hyper-connections: a layer reads one vector from a token's residual streams, and writes its output back to them.

Shapes: N tokens, S streams, D width, O = S * (2 + S) outputs of the router.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from seektune.kernels.reference.precision import upcast
from seektune.kernels.reference.sinkhorn import sinkhorn


def hyper_read(
    streams_NSD: Tensor,
    fn_OI: Tensor,
    base_O: Tensor,
    scale_3: Tensor,
    iterations: int,
    eps: float,
    norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The layer's input `[N, D]`, the weights for writing its output `[N, S]`, and the mixing weights `[N, S, S]`.

    The router is a linear map of all streams of a token, normalized without a weight; mix[j, k] is the share of source
    stream j in target stream k. Everything is fp32; the vector is rounded once to the streams' dtype (paper section
    2.2; official `hc_pre`). Tokens may have several dims.
    """
    n = streams_NSD.shape[-2]
    read, write, mix = hyper_route(streams_NSD, fn_OI, norm_eps).split([n, n, n * n], dim=-1)
    read_base, write_base, mix_base = base_O.split([n, n, n * n])
    y_ND = hyper_gather(streams_NSD, scale_3[0] * read + read_base, eps)
    write_NS = 2 * (scale_3[1] * write + write_base).sigmoid()
    logits_NSS = (scale_3[2] * mix + mix_base).unflatten(-1, (n, n))
    return y_ND, write_NS, sinkhorn(logits_NSS, iterations, eps)


def hyper_collect(
    streams_NSD: Tensor, fn_SI: Tensor, base_S: Tensor, scale_1: Tensor, eps: float, norm_eps: float
) -> Tensor:
    """The head's input, `[N, D]`: a read without write or mixing weights (official `hc_head`)."""
    return hyper_gather(streams_NSD, scale_1 * hyper_route(streams_NSD, fn_SI, norm_eps) + base_S, eps)


def hyper_write(streams_NSD: Tensor, y_ND: Tensor, write_NS: Tensor, mix_NSS: Tensor) -> Tensor:
    """Mix the streams and add the layer's output `y` to each, in fp32, rounded once (official `hc_post`)."""
    mixed = mix_NSS.mT @ upcast(streams_NSD)
    return (write_NS.unsqueeze(-1) * upcast(y_ND).unsqueeze(-2) + mixed).to(streams_NSD.dtype)


def hyper_route(streams_NSD: Tensor, fn_OI: Tensor, norm_eps: float) -> Tensor:
    """Router outputs `[N, O]` before scale and base; normalized after the product, which moves less memory."""
    x = upcast(streams_NSD.flatten(-2))
    return F.linear(x, fn_OI) * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm_eps)


def hyper_gather(streams_NSD: Tensor, logits_NS: Tensor, eps: float) -> Tensor:
    """Mix the streams into one vector `[N, D]` by `sigmoid(logits) + eps`, rounded once to their dtype."""
    weights = logits_NS.sigmoid() + eps
    return (weights.unsqueeze(-1) * upcast(streams_NSD)).sum(dim=-2).to(streams_NSD.dtype)
