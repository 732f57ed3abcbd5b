"""What the kernels of the router of hyper-connections share: sizes of tiles, products, and loads of rows and streams.

Shapes: as `hyper_route`.
"""

import triton
import triton.language as tl
from torch import Tensor

from seektune.kernels.triton.tiles import tile

TOKENS = 16
"""Tokens of a program."""
WIDTH = 64
"""Channels of a tile."""
OPTIONS = {"num_warps": 4, "num_stages": 3}

PRECISION = tl.constexpr("tf32x3")
"""Products of fp32 as three products of tf32, on tensor cores: exact for bf16 streams but for the last bits of the
router's weights (2^-22)."""


def shape_of(streams: Tensor, base: Tensor) -> tuple[int, ...]:
    """Tokens, width, outputs, streams, and the tile's outputs, tokens and channels."""
    tokens, n, width = streams.shape
    return tokens, width, len(base), n, tile(len(base)), TOKENS, WIDTH


@triton.jit
def product(a, b):  # type: ignore[no-untyped-def]
    """`tl.dot` in the precision of `PRECISION`."""
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def rows_at(base, token, channel, tokens, width):  # type: ignore[no-untyped-def]
    """fp32 `[M, C]` of the rows `token` of `[tokens, width]`; 0 outside."""
    mask = (token < tokens)[:, None] & (channel < width)[None, :]
    return tl.load(base + token[:, None] * width + channel[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def first_columns(x, S: tl.constexpr, R: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first S columns of `[M, R]`, `[M, S]`."""
    same = tl.arange(0, R)[None, None, :] == tl.arange(0, S)[None, :, None]
    return tl.sum(tl.where(same, x[:, None, :], 0.0), axis=2)


@triton.jit
def streams_at(base, token, channel, tokens, width, S: tl.constexpr):  # type: ignore[no-untyped-def]
    """fp32 `[M, S, C]` of the streams; 0 outside."""
    stream = tl.arange(0, S)
    mask = (token < tokens)[:, None, None] & (channel < width)[None, None, :]
    at = (token[:, None, None] * S + stream[None, :, None]) * width + channel[None, None, :]
    return tl.load(base + at, mask=mask, other=0.0).to(tl.float32)
