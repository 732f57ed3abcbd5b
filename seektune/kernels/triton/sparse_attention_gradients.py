"""Gradients of sparse attention. The sum over queries in a key's gradient is split so that programs run in parallel:

for window keys, over the queries after the key; for a prefix of entries, over spans of all later queries; for chosen
entries, some queries at a time write their part for each entry of their lists, and each entry then sums its parts.
Shapes: B rows, T queries, N keys, H heads, C head width, E entries, K slots of a list of entries.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from seektune.kernels.triton.tiles import entries_at, heads_of, keys_of, product, run, tile, vectors_at

KEYS = 32
"""Keys of a program that sums their gradients."""
SPANS = 256
"""Target number of programs for key gradients: with fewer tiles than this, the queries are split over programs."""
LIST_VALUES = 2**28
"""Values that queries write for the entries of their lists at a time: 1.1 GB."""
SHARE = 128
"""Average number of parts of an entry that one program sums."""


def query_gradients(
    seen: tuple[Tensor, ...], out: Tensor, grad: Tensor, total: Tensor, places: int, is_list: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries and, per query, of sinks; and the weighted mean gradient of each query's scores.

    `seen` is the forward kernel's inputs: queries, keys, entries, sink, reach, and the three tensors of `_Far`.
    """
    q, keys, entries = seen[:3]
    rows, length, heads, width = q.shape
    dq = torch.empty_like(q)
    along = torch.empty_like(total)
    dsink = torch.empty_like(total)
    _means[(triton.cdiv(total.numel(), 16),)](out, grad, along, total.numel(), width, tile(width), 16)
    shape = length, keys.shape[1], entries.shape[1], heads, width, places
    grid = (rows * length, triton.cdiv(heads, heads_of(q)))
    tiles = (heads_of(q), tile(width), keys_of(q), is_list)
    _queries[grid](*seen, grad, total, along, dq, dsink, width**-0.5, *shape, *tiles, **run(q, 1))
    return dq, dsink, along


def range_gradient(
    q: Tensor, grad: Tensor, total: Tensor, along: Tensor, keys: Tensor, first: Tensor, count: Tensor
) -> Tensor:
    """Gradient of keys if each query sees `count` keys from `first` on."""
    (rows, length, heads, width), held = q.shape, keys.shape[1]
    tiles = triton.cdiv(held, KEYS)
    spans = max(1, min(triton.cdiv(length, KEYS), SPANS // max(rows * tiles, 1)))
    parts = torch.empty(spans, *keys.shape, device=q.device, dtype=total.dtype)
    if held:
        sizes = heads_of(q), tile(width), KEYS
        _keys[(rows, tiles, spans)](
            q, grad, total, along, keys, first, count, *_query_ranges(first, count, tiles), parts, width**-0.5,
            length, held, heads, width, *sizes, **run(q, 2),
        )  # fmt: skip
    return parts.sum(dim=0).to(keys.dtype)


def _query_ranges(first: Tensor, count: Tensor, tiles: int) -> tuple[Tensor, Tensor]:
    """First and end of the queries that may see a key of each tile, int64 `[B, tiles]`, from monotone bounds."""
    begin = torch.arange(tiles, device=first.device).mul(KEYS).repeat(len(first), 1)
    furthest = (first + count).cummax(dim=1).values
    # all queries from this one on begin at this key or a later one
    nearest = torch.where(count > 0, first, begin.shape[1] * KEYS).flip(1).cummin(dim=1).values.flip(1)
    low = torch.searchsorted(furthest, begin, right=True)
    return low, torch.searchsorted(nearest.contiguous(), begin + KEYS)


def list_gradient(q: Tensor, grad: Tensor, total: Tensor, along: Tensor, entries: Tensor, index: Tensor) -> Tensor:
    """Gradient of entries if each query has a list of them. Nothing here waits for the GPU."""
    (rows, length, heads, width), (places, held) = q.shape, (index.shape[2], entries.shape[1])
    count = rows * held
    sums = torch.zeros(count, width, device=q.device, dtype=total.dtype)
    row = torch.arange(rows, device=q.device)[:, None, None]
    entry = torch.where(index >= 0, index + row * held, count).view(rows * length, places)
    chunk = max(LIST_VALUES // max(places * width, 1), 1)
    for start in range(0, rows * length if held and places else 0, chunk):
        chosen = entry[start : start + chunk]
        parts = torch.empty(*chosen.shape, width, device=q.device, dtype=total.dtype)
        sizes = heads_of(q), tile(width), KEYS
        _spread[(len(chosen),)](
            q, grad, total, along, entries, chosen, parts, width**-0.5, start, count, heads, width, places,
            *sizes, **run(q, 2),
        )  # fmt: skip
        order, starts = _by_entry(chosen, count)
        spans = triton.cdiv(chosen.numel(), SHARE * count)
        shares = torch.empty(spans, count, width, device=q.device, dtype=total.dtype)
        _gather[(count, spans)](parts, order, starts, shares, width, tile(width), 8)
        sums += shares.sum(dim=0)
    return sums.view_as(entries).to(entries.dtype)


def _by_entry(chosen: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Places of lists `[T, K]` in the order of their entries, of queries within an entry; where each entry's begin."""
    by_entry, order = chosen.flatten().int().sort(stable=True)
    return order, torch.searchsorted(by_entry, torch.arange(count + 1, device=chosen.device, dtype=torch.int32))


@triton.jit
def _add_query_gradient(q, grad, keys, seen, scale, total, along, acc):  # type: ignore[no-untyped-def]
    """Add a tile of keys to the gradient of queries."""
    scores = tl.where(seen[None, :], product(q, tl.trans(keys)) * scale, float("-inf"))
    slope = tl.exp(scores - total[:, None]) * (product(grad, tl.trans(keys)) - along[:, None]) * scale
    return acc + product(slope.to(keys.dtype), keys)


@triton.jit
def _means(out, grad, along, count, width, C: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Mean gradient of a query's scores, weighted by its weights: the product of output and gradient."""
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    wide = along.dtype.element_ty
    o = vectors_at(out, at, width, C, at < count).to(wide)
    d = vectors_at(grad, at, width, C, at < count).to(wide)
    tl.store(along + at, tl.sum(o * d, axis=1), mask=at < count)


@triton.jit
def _queries(  # type: ignore[no-untyped-def]
    q, keys, entries, sink, reach, index, first, count, grad, total, along, dq, dsink, scale, length, n_keys,
    n_entries, heads, width, places, H: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    row = token // length
    query = token % length
    head = tl.program_id(1) * H + tl.arange(0, H)
    at = token * heads + head
    vectors = vectors_at(q, at, width, C, head < heads)
    above = vectors_at(grad, at, width, C, head < heads)
    wide = total.dtype.element_ty
    norm = tl.load(total + at, mask=head < heads, other=0.0)
    mean = tl.load(along + at, mask=head < heads, other=0.0)
    acc = tl.zeros([H, C], wide)
    own = n_keys - length + query
    for start in range(tl.maximum(own - tl.load(reach + token), 0), own + 1, TILE):
        key = start + tl.arange(0, TILE)
        values = vectors_at(keys, row * n_keys + key, width, C, key <= own)
        acc = _add_query_gradient(vectors, above, values, key <= own, scale, norm, mean, acc)
    end = places if LIST else tl.load(count + token)
    for start in range(0, end, TILE):
        entry, seen = entries_at(index, first, count, token, start + tl.arange(0, TILE), places, LIST)
        values = vectors_at(entries, row * n_entries + entry, width, C, seen)
        acc = _add_query_gradient(vectors, above, values, seen, scale, norm, mean, acc)
    channel = tl.arange(0, C)
    mask = (head < heads)[:, None] & (channel < width)[None, :]
    tl.store(dq + at[:, None] * width + channel[None, :], acc.to(dq.dtype.element_ty), mask=mask)
    weight = tl.exp(tl.load(sink + head, mask=head < heads, other=0.0).to(wide) - norm)
    tl.store(dsink + at, -weight * mean, mask=head < heads)


@triton.jit
def _add_key_gradient(  # type: ignore[no-untyped-def]
    q, grad, total, along, token, head, values, seen, scale, heads, width, acc, C: tl.constexpr
):
    """Add some heads of a query to the gradients of a tile of keys `[N, C]`."""
    at = token * heads + head
    vectors = vectors_at(q, at, width, C, head < heads)
    above = vectors_at(grad, at, width, C, head < heads)
    norm = tl.load(total + at, mask=head < heads, other=float("inf"))
    mean = tl.load(along + at, mask=head < heads, other=0.0)
    scores = tl.where(seen[:, None], product(values, tl.trans(vectors)) * scale, float("-inf"))
    weights = tl.exp(scores - norm[None, :])
    slope = weights * (product(values, tl.trans(above)) - mean[None, :]) * scale
    acc += product(slope.to(vectors.dtype), vectors)
    return acc + product(weights.to(above.dtype), above)


@triton.jit
def _keys(  # type: ignore[no-untyped-def]
    q, grad, total, along, keys, first, count, low, high, parts, scale, length, n_keys, heads, width,
    H: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of keys: a loop over the heads and queries of a span."""
    row = tl.program_id(0).to(tl.int64)
    key = tl.program_id(1) * TILE + tl.arange(0, TILE)
    values = vectors_at(keys, row * n_keys + key, width, C, key < n_keys)
    acc = tl.zeros([TILE, C], total.dtype.element_ty)
    tile = row * tl.num_programs(1) + tl.program_id(1)
    begin = tl.load(low + tile)
    end = tl.load(high + tile)
    span = tl.cdiv(end - begin, tl.num_programs(2))
    blocks = tl.cdiv(heads, H)
    begin += tl.program_id(2) * span
    for step in range(begin * blocks, tl.minimum(begin + span, end) * blocks):
        token = row * length + step // blocks
        head = step % blocks * H + tl.arange(0, H)
        start = tl.load(first + token)
        seen = (key >= start) & (key < start + tl.load(count + token)) & (key < n_keys)
        acc = _add_key_gradient(q, grad, total, along, token, head, values, seen, scale, heads, width, acc, C)
    channel = tl.arange(0, C)
    mask = (key < n_keys)[:, None] & (channel < width)[None, :]
    place = (tl.program_id(2).to(tl.int64) * tl.num_programs(0) + row) * n_keys + key
    tl.store(parts + place[:, None] * width + channel[None, :], acc, mask=mask)


@triton.jit
def _spread(  # type: ignore[no-untyped-def]
    q, grad, total, along, entries, chosen, parts, scale, begin, n_total, heads, width, places,
    H: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The part of a query in the gradient of each entry of its list, in the list's order."""
    here = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, C)
    for start in range(0, places, TILE):
        place = start + tl.arange(0, TILE)
        entry = tl.load(chosen + here * places + place, mask=place < places, other=n_total)
        seen = entry < n_total
        values = vectors_at(entries, entry, width, C, seen)
        acc = tl.zeros([TILE, C], total.dtype.element_ty)
        for part in range(0, heads, H):
            head = part + tl.arange(0, H)
            acc = _add_key_gradient(
                q, grad, total, along, begin + here, head, values, seen, scale, heads, width, acc, C
            )
        mask = seen[:, None] & (channel < width)[None, :]
        tl.store(parts + (here * places + place)[:, None] * width + channel[None, :], acc, mask=mask)


@triton.jit
def _gather(parts, order, starts, shares, width, C: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sum a share of the parts that queries wrote for an entry, in the queries' order."""
    entry = tl.program_id(0).to(tl.int64)
    span = tl.program_id(1)
    channel = tl.arange(0, C)
    acc = tl.zeros([C], shares.dtype.element_ty)
    begin = tl.load(starts + entry)
    end = tl.load(starts + entry + 1)
    size = tl.cdiv(end - begin, tl.num_programs(1))
    begin += span * size
    end = tl.minimum(begin + size, end)
    for start in range(begin, end, ROWS):
        pair = start + tl.arange(0, ROWS)
        at = tl.load(order + pair, mask=pair < end, other=0)
        acc += tl.sum(vectors_at(parts, at, width, C, pair < end), axis=0)
    place = (span.to(tl.int64) * tl.num_programs(0) + entry) * width + channel
    tl.store(shares + place, acc, mask=channel < width)
