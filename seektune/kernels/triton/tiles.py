"""Shared parts of the sparse attention kernels: tile sizes, fp32 products, and loads of vectors.

Shapes: N keys, H heads, C head width, K slots of a list of entries. Tiles are powers of two with at least 16 rows.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

SIZES = ((220_000, 64, 64), (160_000, 32, 32), (0, 16, 32))
"""Least shared memory of a multiprocessor in bytes (H100 and B200 have 232,448, A100 166,912, RTX PRO 6000 101,376),
most heads of a program, and keys of a tile (of forward and of the gradient of queries)."""
WIDEST = 1024
"""Most bytes of a query's head for which these sizes fit."""


def tile(size: int) -> int:
    """The smallest tile that holds `size` rows."""
    return max(triton.next_power_of_2(size), 16)


def heads_of(q_BTHC: Tensor) -> int:
    """Heads of a program."""
    return min(tile(q_BTHC.shape[2]), _sizes(q_BTHC.device)[0])


def keys_of(q_BTHC: Tensor) -> int:
    """Keys of a tile."""
    return _sizes(q_BTHC.device)[1]


def fits(q_BTHC: Tensor) -> bool:
    """Whether the queries of a program fit: heads of up to 512 channels in bf16, 256 in fp32."""
    return q_BTHC.element_size() * tile(q_BTHC.shape[3]) <= WIDEST


def run(q_BTHC: Tensor, stages: int) -> dict[str, int]:
    """Launch options: sums of 64 heads of 512 channels take half of 8 warps' registers; stage 2 prefetches a tile."""
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
    """`tl.dot` without rounding fp32 to tf32, Triton's default; bf16 is unaffected."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def vectors_at(base, at, width, C: tl.constexpr, inside):  # type: ignore[no-untyped-def]
    """Vectors `at` of `base`, `[N, C]`; 0 where not `inside`."""
    channel = tl.arange(0, C)
    mask = inside[:, None] & (channel < width)[None, :]
    return tl.load(base + at[:, None] * width + channel[None, :], mask=mask, other=0.0)


@triton.jit
def entries_at(index, first, count, token, place, places, LIST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Entries at slots of a query's list, and which slots hold one."""
    if LIST:
        entry = tl.load(index + token * places + place, mask=place < places, other=-1)
        return tl.maximum(entry, 0), entry >= 0
    return tl.load(first + token) + place, place < tl.load(count + token)
