"""What kernels of sparse attention share: sizes of tiles, exact products, and vectors by place.

Shapes: N keys, H heads, C head width, K places of a list of entries. Tiles are powers of two with 16 rows at least.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

SIZES = ((220_000, 64, 64), (160_000, 32, 32), (0, 16, 32))
"""Shared memory of a multiprocessor in bytes (H100 and B200 have 232,448, A100 166,912, RTX PRO 6000 101,376), and with
so much the most heads of a program, and keys of a tile of forward and of the gradient of queries."""
WIDEST = 1024
"""Bytes of a query's head for which those sizes are."""


def tile(size: int) -> int:
    """The tile that holds so many."""
    return max(triton.next_power_of_2(size), 16)


def heads_of(q_BTHC: Tensor) -> int:
    """Heads of a program."""
    return min(tile(q_BTHC.shape[2]), _sizes(q_BTHC.device)[0])


def keys_of(q_BTHC: Tensor) -> int:
    """Keys of a tile."""
    return _sizes(q_BTHC.device)[1]


def fits(q_BTHC: Tensor) -> bool:
    """Whether a program can hold the queries of its heads: bf16 of 512 channels it can, fp32 of 256."""
    return q_BTHC.element_size() * tile(q_BTHC.shape[3]) <= WIDEST


def run(q_BTHC: Tensor, stages: int) -> dict[str, int]:
    """Sums of 64 heads of 512 channels take half of the registers of 8 warps; a second stage fetches a tile ahead."""
    return {"num_warps": 8 if tile(q_BTHC.shape[3]) >= 256 else 4, "num_stages": stages}


@cache
def _sizes(device: torch.device) -> tuple[int, int]:
    shared = 0
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        shared = triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]
    return next((heads, keys) for least, heads, keys in SIZES if shared >= least)


@triton.jit
def product(a, b):  # type: ignore[no-untyped-def]
    """Without the rounding of fp32 to tf32 that is Triton's default; bf16 goes to the tensor cores as it is."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def vectors_at(base, at, width, C: tl.constexpr, inside):  # type: ignore[no-untyped-def]
    """Vectors `at` of `base`, `[N, C]`."""
    channel = tl.arange(0, C)
    mask = inside[:, None] & (channel < width)[None, :]
    return tl.load(base + at[:, None] * width + channel[None, :], mask=mask, other=0.0)


@triton.jit
def entries_at(index, first, count, token, place, places, LIST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Entries at some places of a query's list, and which places hold one."""
    if LIST:
        entry = tl.load(index + token * places + place, mask=place < places, other=-1)
        return tl.maximum(entry, 0), entry >= 0
    return tl.load(first + token) + place, place < tl.load(count + token)
