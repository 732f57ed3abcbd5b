"""What a block does before and after it looks at other tokens, for few tokens: one call each.

Shapes: N tokens, S streams, D width, R query rank, H heads, C head width, P rotated pairs, K experts per token.
"""

from collections.abc import Sequence
from ctypes import c_int64
from dataclasses import dataclass

import torch
from torch import Tensor

from seektune.kernels.cpu.library import function


@dataclass(frozen=True)
class Sizes:
    """Of a block; every matrix is contiguous."""

    streams: int
    width: int
    iterations: int
    rank: int
    heads: int
    head: int
    pairs: int
    groups: int
    group_outputs: int
    experts: int
    experts_per_token: int
    inner: int
    hyper_eps: float
    eps: float
    factor: float
    limit: float


@dataclass(frozen=True)
class Entered:
    """What attention goes on with, and how its result is written back."""

    x_ND: Tensor
    q_residual_NR: Tensor
    q_NHC: Tensor
    keys_NC: Tensor
    write_NS: Tensor
    mix_NSS: Tensor


def enter(streams_NSD: Tensor, weights: Sequence[Tensor], cos_NP: Tensor, sin_NP: Tensor, of: Sizes) -> Entered:
    """Read from the streams, norm, queries and window keys; `weights` in the order of `block_enter` in block.h."""
    run = function("block_enter", streams_NSD.dtype)
    tokens = streams_NSD.shape[0]
    assert run is not None
    new = streams_NSD.new_empty
    fn = weights[0]
    made = (
        *(new((tokens, of.width)), new((tokens, of.rank)), new((tokens, of.heads, of.head)), new((tokens, of.head))),
        *(fn.new_empty((tokens, of.streams)), fn.new_empty((tokens, of.streams, of.streams))),
    )
    sizes = tokens, of.streams, of.width, of.iterations, of.rank, of.heads, of.head, of.pairs
    run(_addresses(streams_NSD, *weights, cos_NP, sin_NP, *made), (c_int64 * 8)(*sizes), of.hyper_eps, of.eps)
    return Entered(*made)


def leave(
    streams_NSD: Tensor,
    o_NHC: Tensor,
    cos_NP: Tensor,
    sin_NP: Tensor,
    entered: Entered,
    weights: Sequence[Tensor | None],
    of: Sizes,
) -> Tensor:
    """Streams from what attention gave, which is written over; `weights` in the order of `block_leave` in block.h."""
    run = function("block_leave", streams_NSD.dtype)
    tokens = streams_NSD.shape[0]
    out = torch.empty_like(streams_NSD)
    assert run is not None
    wo_a, wo_b, *others = weights
    written = entered.write_NS, entered.mix_NSS
    addresses = _addresses(streams_NSD, o_NHC, cos_NP, sin_NP, wo_a, wo_b, *written, *others, out)
    sizes = (
        *(tokens, of.streams, of.width, of.iterations, of.heads, of.head, of.pairs, of.groups, of.group_outputs),
        *(of.experts, of.experts_per_token, of.inner),
    )
    run(addresses, (c_int64 * 12)(*sizes), of.hyper_eps, of.eps, of.factor, of.limit)
    return out


def _addresses(*tensors: Tensor | None) -> object:
    return (c_int64 * len(tensors))(*[0 if x is None else x.data_ptr() for x in tensors])
