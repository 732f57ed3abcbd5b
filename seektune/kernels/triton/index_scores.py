"""The indexer's scores in a kernel that keeps per-head scores out of memory; torch picks the top k.

Shapes: B rows, T tokens, Q queries of a chunk, H index heads, I index width, E entries, K chosen entries.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from seektune.kernels.eager.index_scores import topk_indices
from seektune.kernels.reference.sparse_attention import Chosen, Prefix

QUERIES = 512
"""Queries whose scores exist at a time."""
HEADS = 64
"""Most heads of one step."""
TILE = 64
"""Entries of a program."""


@torch.no_grad()
def index_topk(q_BTHI: Tensor, keys_BEI: Tensor, weights_BTH: Tensor, visible: Prefix, k: int) -> Chosen:
    """See `reference.index_topk`; the order within a list may differ."""
    rows, length, heads, width = q_BTHI.shape
    entries = keys_BEI.shape[1]
    k = min(k, keys_BEI.shape[1])
    q, keys, weights = (x.contiguous() for x in (q_BTHI, keys_BEI.to(q_BTHI.dtype), weights_BTH))
    first = visible.first_BT.contiguous()
    count = visible.count_BT.contiguous()
    chosen = [visible.first_BT.new_empty(rows, 0, k)]
    for start in range(0, length, QUERIES):
        size = min(QUERIES, length - start)
        scores = torch.empty(rows, size, entries, device=q.device, dtype=torch.float32)
        grid = rows * size, triton.cdiv(entries, TILE)
        shape = start, size, length, entries, heads, width
        sizes = max(triton.next_power_of_2(width), 16), min(max(triton.next_power_of_2(heads), 16), HEADS), TILE
        _scores[grid](q, keys, weights, first, count, scores, *shape, *sizes)
        chosen.append(topk_indices(scores.flatten(0, 1), k).view(rows, size, k))
    return Chosen(torch.cat(chosen, dim=1))


@triton.jit
def _scores(  # type: ignore[no-untyped-def]
    q, keys, weights, first, count, scores, begin_at, size, length, entries, heads,
    width, C: tl.constexpr, H: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) // size
    query = tl.program_id(0) % size
    token = (row * length + begin_at + query).to(tl.int64)
    entry = tl.program_id(1) * TILE + tl.arange(0, TILE)
    channel = tl.arange(0, C)
    inside = entry < entries
    at = (row * entries + entry)[:, None] * width + channel[None, :]
    key = tl.load(keys + at, mask=inside[:, None] & (channel < width)[None, :], other=0.0)
    total = tl.zeros([TILE], tl.float32)
    for start in range(0, heads, H):
        head = start + tl.arange(0, H)
        some = head < heads
        asked = (token * heads + head)[:, None] * width + channel[None, :]
        vectors = tl.load(q + asked, mask=some[:, None] & (channel < width)[None, :], other=0.0)
        by_head = tl.dot(key, tl.trans(vectors), input_precision="ieee")
        weight = tl.load(weights + token * heads + head, mask=some, other=0.0).to(tl.float32)
        total += tl.sum(tl.where(by_head < 0.0, 0.0, by_head) * weight[None, :], axis=1)
    begin = tl.load(first + token)
    seen = (entry >= begin) & (entry < begin + tl.load(count + token))
    at = (row * size + query) * entries + entry
    tl.store(scores + at, tl.where(seen, total, float("-inf")), mask=inside)
