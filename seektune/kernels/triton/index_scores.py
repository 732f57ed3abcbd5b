"""The indexer's top-k in one kernel: a program keeps the scores of a query's entries in registers and chooses there.

No score is written, unless a query can see more entries than a program holds: then each program writes its k best.
Per query, heads and keys are read once (2 H I T bytes in bf16, and 2 I bytes per visible entry, most from the L2
cache), 8 k bytes are written, and 2 H (I + 1) operations are done per visible entry. Shapes: B rows, T tokens, H index
heads, I index width, E entries, K chosen entries, S entries of a program, N queries.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from seektune.kernels.eager.index_scores import topk_indices
from seektune.kernels.reference.sparse_attention import Chosen, Prefix
from seektune.kernels.triton.tiles import product, tile, vectors_at

SPAN = 4096
"""Most entries of a program: 16 registers of each thread, the entries of 16,384 tokens."""
QUERIES = 512
"""Queries whose candidates exist at a time where a query sees more entries than a program holds."""
WARPS = 8


@dataclass(frozen=True)
class _Inputs:
    """Contiguous inputs of all queries."""

    q: Tensor
    keys: Tensor
    weights: Tensor
    first: Tensor
    count: Tensor

    def choose(self, begin: int, queries: int, k: int, spans: int, span: int) -> tuple[Tensor, Tensor]:
        """The k best entries of each span of the entries that a query sees, `[N, spans * K]`, and their scores.

        They are in the entries' order; empty slots are -1, with a score of -inf. With one span no score is written.
        """
        _, length, heads, width = self.q.shape
        chosen = self.first.new_empty(queries, spans * k)
        scores = self.q.new_empty(chosen.shape if spans > 1 else (0,), dtype=torch.float32)
        shape = begin, length, self.keys.shape[1], heads, width, k
        sizes = tile(width), tile(heads), tile_of(self.q), span, tile(k), spans > 1
        inputs = self.q, self.keys, self.weights, self.first, self.count
        _choose[(queries, spans)](*inputs, chosen, scores, *shape, *sizes, num_warps=WARPS, num_stages=2)
        return chosen, scores


@torch.no_grad()
def index_topk(q_BTHI: Tensor, keys_BEI: Tensor, weights_BTH: Tensor, visible: Prefix, k: int) -> Chosen:
    """See `reference.index_topk`; the order within a list may differ."""
    rows, length = q_BTHI.shape[:2]
    entries = keys_BEI.shape[1]
    k = min(k, entries)
    if not rows * length * k:
        return Chosen(visible.first_BT.new_empty(rows, length, k))
    tensors = q_BTHI, keys_BEI.to(q_BTHI.dtype), weights_BTH, visible.first_BT, visible.count_BT
    inputs = _Inputs(*(x.contiguous() for x in tensors))
    span = max(min(triton.next_power_of_2(entries), SPAN), tile(k), tile_of(q_BTHI))
    spans = triton.cdiv(entries, span)
    if spans == 1:
        chosen, _ = inputs.choose(0, rows * length, k, spans, span)
        return Chosen(chosen.view(rows, length, k))
    parts = [
        best_of(*inputs.choose(begin, min(QUERIES, rows * length - begin), k, spans, span), k)
        for begin in range(0, rows * length, QUERIES)
    ]
    return Chosen(torch.cat(parts).view(rows, length, k))


def best_of(chosen_NC: Tensor, scores_NC: Tensor, k: int) -> Tensor:
    """The k best of each query's candidates, `[N, K]`; -1 where there are fewer."""
    places = topk_indices(scores_NC, k)
    return torch.where(places < 0, -1, chosen_NC.gather(1, places.clamp(min=0)))


def tile_of(q_BTHI: Tensor) -> int:
    """Entries whose scores are computed at a time."""
    return 128 if q_BTHI.element_size() == 2 else 32


@triton.jit
def _ordered(score):  # type: ignore[no-untyped-def]
    """An int32 in the order of fp32 scores; -0 becomes 0, which it ties with."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _kth_largest(order, k):  # type: ignore[no-untyped-def]
    """The k-th largest number, found bit by bit; the least int32 if there are fewer."""
    least = tl.where(tl.sum((order >= 0).to(tl.int32), axis=0) >= k, 0, -0x80000000).to(tl.int32)
    for step in range(31):
        higher = least + (1 << (30 - step))
        enough = tl.sum((order >= higher).to(tl.int32), axis=0) >= k
        least = tl.where(enough, higher, least)
    return least


@triton.jit
def _choose(  # type: ignore[no-untyped-def]
    q, keys, weights, first, count, chosen, scores, begin_at, length, entries, heads, width, k,
    C: tl.constexpr, H: tl.constexpr, TILE: tl.constexpr, S: tl.constexpr, K: tl.constexpr, SCORES: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0).to(tl.int64)
    token = begin_at + query
    out = (query * tl.num_programs(1) + tl.program_id(1)) * k
    slot = tl.arange(0, K)
    visible = tl.load(count + token)
    begin = tl.load(first + token) + tl.program_id(1) * S
    held = tl.minimum(visible - tl.program_id(1) * S, S).to(tl.int32)
    if visible <= k:
        # all are chosen, without scores
        tl.store(chosen + out + slot, tl.where(slot < held, begin + slot, -1), mask=slot < k)
        if SCORES:
            tl.store(scores + out + slot, tl.where(slot < held, 0.0, float("-inf")), mask=slot < k)
        return
    if SCORES:
        # a span may hold fewer than k entries; all of them are chosen
        empty = (slot >= held) & (slot < k)
        tl.store(chosen + out + slot, tl.full([K], -1, tl.int64), mask=empty)
        tl.store(scores + out + slot, tl.full([K], float("-inf"), tl.float32), mask=empty)
    head = tl.arange(0, H)
    vectors = vectors_at(q, token * heads + head, width, C, head < heads)
    weight = tl.load(weights + token * heads + head, mask=head < heads, other=0.0).to(tl.float32)
    part = tl.arange(0, S // TILE)
    # what is not seen is less than every score
    order = tl.full([S // TILE, TILE], -0x80000000, tl.int32)
    for number in range(0, tl.cdiv(held, TILE)):
        place = number * TILE + tl.arange(0, TILE)
        key = vectors_at(keys, token // length * entries + begin + place, width, C, place < held)
        by_head = product(key, tl.trans(vectors)).to(tl.float32)
        score = tl.sum(tl.where(by_head < 0.0, 0.0, by_head) * weight[None, :], axis=1)
        new = tl.where(place < held, _ordered(score), -0x80000000)
        order = tl.where((part == number)[:, None], new[None, :], order)
    order = tl.reshape(order, [S])
    least = _kth_largest(order, k)
    above = order > least
    equal = (order == least) & (tl.arange(0, S) < held)
    wanted = k - tl.sum(above.to(tl.int32), axis=0)
    # two counts in one scan: those above in the high half, those equal to the least in the low one
    counts = tl.cumsum(above.to(tl.int32) * 0x10000 + equal.to(tl.int32), axis=0)
    ties = counts & 0xFFFF
    taken = above | (equal & (ties <= wanted))
    at = out + (counts >> 16) + tl.minimum(ties, wanted) - 1
    tl.store(chosen + at, begin + tl.arange(0, S), mask=taken)
    if SCORES:
        bits = order ^ ((order >> 31) & 0x7FFFFFFF)
        tl.store(scores + at, bits.to(tl.float32, bitcast=True), mask=taken)
