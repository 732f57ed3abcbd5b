"""Sparse attention for NVIDIA GPUs: a query's heads times its keys is one product; a key's gradient sums over queries.

Shapes: B rows, T queries, N keys, H heads, C head width, E entries, K places of a list of entries. Tiles are powers of
two with 16 rows at least. Nothing is added atomically: the sums are the same every time.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.reference.precision import upcast
from seektune.kernels.reference.sparse_attention import Chosen, Visible
from seektune.kernels.reference.sparse_attention import sparse_attention as reference

TILE = 16
"""Keys of a tile."""


@dataclass(frozen=True)
class _Far:
    """Entries of each query: a list, or `count` of them from `first` on; the other tensors are then empty."""

    index: Tensor
    first: Tensor
    count: Tensor
    places: int
    is_list: bool

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """In the order in which kernels take them."""
        return self.index, self.first, self.count


def sparse_attention(
    q_BTHC: Tensor,
    keys_BNC: Tensor,
    entries_BEC: Tensor,
    sink_H: Tensor,
    positions_BT: Tensor,
    window: int,
    visible: Visible,
) -> Tensor:
    """See `reference.sparse_attention`."""
    assert keys_BNC.shape[1] >= q_BTHC.shape[1], "every query has a key"
    if q_BTHC.shape[1] == 0:
        return reference(q_BTHC, keys_BNC, entries_BEC, sink_H, positions_BT, window, visible)
    reach_BT = positions_BT.clamp(max=window - 1).contiguous()
    nothing = torch.zeros_like(reach_BT)
    if isinstance(visible, Chosen):
        far = _Far(visible.index_BTK.contiguous(), nothing, nothing, visible.index_BTK.shape[2], True)
    else:
        far = _Far(nothing, visible.first_BT.contiguous(), visible.count_BT.contiguous(), entries_BEC.shape[1], False)
    inputs = (x.contiguous() for x in (q_BTHC, keys_BNC, entries_BEC, sink_H))
    out: Tensor = _SparseAttention.apply(*inputs, reach_BT, window, far)
    return out


class _SparseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, keys, entries, sink, reach, window, far):  # type: ignore[no-untyped-def]
        rows, length, heads, width = q.shape
        out, total = torch.empty_like(q), torch.empty(rows, length, heads, device=q.device, dtype=upcast(q[:0]).dtype)
        shape = length, keys.shape[1], entries.shape[1], heads, width, far.places
        tiles = _tile(heads), _tile(width), TILE, far.is_list
        _forward[(rows * length,)](
            q, keys, entries, sink, reach, *far.tensors(), out, total, width**-0.5, *shape, *tiles
        )
        ctx.save_for_backward(q, keys, entries, sink, reach, *far.tensors(), out, total)
        ctx.shape = shape, tiles, window, far
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, keys, entries, sink, reach, index, first, count, out, total = ctx.saved_tensors
        shape, tiles, window, far = ctx.shape
        rows, length, heads, width = q.shape
        grad, scale = grad.contiguous(), width**-0.5
        dq, along, dsink = torch.empty_like(q), torch.empty_like(total), torch.empty_like(total)
        seen = q, keys, entries, sink, reach, index, first, count
        _queries[(rows * length,)](*seen, out, grad, total, dq, along, dsink, scale, *shape, *tiles)
        sums = q, grad, total, along
        dkeys, dentries = torch.empty_like(keys), torch.zeros_like(entries)
        grid = rows, triton.cdiv(keys.shape[1], TILE)
        _keys[grid](
            *sums, keys, reach, reach, dkeys, scale, length, keys.shape[1], heads, width, window, *tiles[:3], True
        )
        if far.is_list:
            pairs, starts = _inverse(index, entries.shape[1])
            _listed[(rows * entries.shape[1],)](
                *sums, entries, pairs, starts, dentries, scale, heads, width, *tiles[:2]
            )
        elif entries.shape[1]:
            grid = rows, triton.cdiv(entries.shape[1], TILE)
            _keys[grid](
                *sums,
                entries,
                first,
                count,
                dentries,
                scale,
                length,
                entries.shape[1],
                heads,
                width,
                0,
                *tiles[:3],
                False,
            )
        return dq, dkeys, dentries, dsink.sum(dim=(0, 1)).to(sink.dtype), None, None, None


def _tile(size: int) -> int:
    return max(triton.next_power_of_2(size), 16)


def _inverse(index_BTK: Tensor, entries: int) -> tuple[Tensor, Tensor]:
    """For each entry of each row the queries that chose it, in order, and where its run begins."""
    rows, _, places = index_BTK.shape
    row = torch.arange(rows, device=index_BTK.device)[:, None, None]
    entry = torch.where(index_BTK >= 0, index_BTK + row * entries, rows * entries).flatten()
    order = entry.argsort(stable=True)
    ends = torch.bincount(entry, minlength=rows * entries + 1).cumsum(0)
    return (order // places).contiguous(), torch.cat([ends.new_zeros(1), ends])


@triton.jit
def _attend(q, keys, seen, scale, top, total, acc):  # type: ignore[no-untyped-def]
    """One tile of keys `[N, C]` into the running softmax of `[H]` heads."""
    scores = tl.dot(q, tl.trans(keys)) * scale
    scores = tl.where(seen[None, :], scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, axis=1))
    weights = tl.exp(scores - higher[:, None])
    kept = tl.exp(top - higher)
    acc = acc * kept[:, None] + tl.dot(weights.to(keys.dtype), keys)
    return higher, total * kept + tl.sum(weights, axis=1), acc


@triton.jit
def _vectors(base, at, width, C: tl.constexpr, inside):  # type: ignore[no-untyped-def]
    """Vectors `at` of `base`, `[N, C]`."""
    channel = tl.arange(0, C)
    mask = inside[:, None] & (channel < width)[None, :]
    return tl.load(base + at[:, None] * width + channel[None, :], mask=mask, other=0.0)


@triton.jit
def _entries(index, first, count, token, place, places, LIST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Entries at some places of a query's list, and which places hold one."""
    if LIST:
        entry = tl.load(index + token * places + place, mask=place < places, other=-1)
        return tl.maximum(entry, 0), entry >= 0
    return tl.load(first + token) + place, place < tl.load(count + token)


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    q, keys, entries, sink, reach, index, first, count, out, total, scale, length, n_keys, n_entries, heads, width,
    places, H: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    row, query = token // length, token % length
    head = tl.arange(0, H)
    vectors = _vectors(q, token * heads + head, width, C, head < heads)
    wide = total.dtype.element_ty
    top = tl.load(sink + head, mask=head < heads, other=0.0).to(wide)
    share, acc = tl.full([H], 1.0, wide), tl.zeros([H, C], wide)
    own = n_keys - length + query
    begin = tl.maximum(own - tl.load(reach + token), 0)
    for start in range(begin, own + 1, TILE):
        key = start + tl.arange(0, TILE)
        values = _vectors(keys, row * n_keys + key, width, C, key <= own)
        top, share, acc = _attend(vectors, values, key <= own, scale, top, share, acc)
    end = places if LIST else tl.load(count + token)
    for start in range(0, end, TILE):
        entry, seen = _entries(index, first, count, token, start + tl.arange(0, TILE), places, LIST)
        values = _vectors(entries, row * n_entries + entry, width, C, seen)
        top, share, acc = _attend(vectors, values, seen, scale, top, share, acc)
    channel = tl.arange(0, C)
    at = (token * heads + head)[:, None] * width + channel[None, :]
    mask = (head < heads)[:, None] & (channel < width)[None, :]
    tl.store(out + at, (acc / share[:, None]).to(out.dtype.element_ty), mask=mask)
    tl.store(total + token * heads + head, top + tl.log(share), mask=head < heads)


@triton.jit
def _slope(q, grad, keys, seen, scale, total, along):  # type: ignore[no-untyped-def]
    """Weights of a tile of keys and gradients of its scores, both `[H, N]`."""
    scores = tl.where(seen[None, :], tl.dot(q, tl.trans(keys)) * scale, float("-inf"))
    weights = tl.exp(scores - total[:, None])
    return weights, weights * (tl.dot(grad, tl.trans(keys)) - along[:, None]) * scale


@triton.jit
def _queries(  # type: ignore[no-untyped-def]
    q, keys, entries, sink, reach, index, first, count, out, grad, total, dq, along, dsink, scale, length, n_keys,
    n_entries, heads, width, places, H: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    row, query = token // length, token % length
    head = tl.arange(0, H)
    at = token * heads + head
    vectors, above = (
        _vectors(q, at, width, C, head < heads),
        _vectors(grad, at, width, C, head < heads),
    )
    wide = total.dtype.element_ty
    mean = tl.sum(above.to(wide) * _vectors(out, at, width, C, head < heads).to(wide), axis=1)
    norm = tl.load(total + at, mask=head < heads, other=0.0)
    acc = tl.zeros([H, C], wide)
    own = n_keys - length + query
    for start in range(tl.maximum(own - tl.load(reach + token), 0), own + 1, TILE):
        key = start + tl.arange(0, TILE)
        values = _vectors(keys, row * n_keys + key, width, C, key <= own)
        _, slope = _slope(vectors, above, values, key <= own, scale, norm, mean)
        acc += tl.dot(slope.to(values.dtype), values)
    end = places if LIST else tl.load(count + token)
    for start in range(0, end, TILE):
        entry, seen = _entries(index, first, count, token, start + tl.arange(0, TILE), places, LIST)
        values = _vectors(entries, row * n_entries + entry, width, C, seen)
        _, slope = _slope(vectors, above, values, seen, scale, norm, mean)
        acc += tl.dot(slope.to(values.dtype), values)
    channel = tl.arange(0, C)
    mask = (head < heads)[:, None] & (channel < width)[None, :]
    tl.store(dq + at[:, None] * width + channel[None, :], acc.to(dq.dtype.element_ty), mask=mask)
    tl.store(along + at, mean, mask=head < heads)
    weight = tl.exp(tl.load(sink + head, mask=head < heads, other=0.0).to(wide) - norm)
    tl.store(dsink + at, -weight * mean, mask=head < heads)


@triton.jit
def _keys(  # type: ignore[no-untyped-def]
    q, grad, total, along, keys, first, count, dkeys, scale, length, n_keys, heads, width, window,
    H: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, NEAR: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of window keys, or of entries that queries see as neighbours: a loop over those queries."""
    row, key = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE + tl.arange(0, TILE)
    values = _vectors(keys, row * n_keys + key, width, C, key < n_keys)
    head = tl.arange(0, H)
    acc = tl.zeros([TILE, C], total.dtype.element_ty)
    earlier = n_keys - length
    low = tl.maximum(tl.program_id(1) * TILE - earlier, 0) if NEAR else 0
    high = tl.minimum(tl.program_id(1) * TILE + TILE - 1 + window - earlier, length) if NEAR else length
    for query in range(low, high):
        token = row * length + query
        if NEAR:
            behind = query + earlier - key
            seen = (behind >= 0) & (behind <= tl.load(first + token))
        else:
            begin = tl.load(first + token)
            seen = (key >= begin) & (key < begin + tl.load(count + token))
        at = token * heads + head
        vectors, above = (
            _vectors(q, at, width, C, head < heads),
            _vectors(grad, at, width, C, head < heads),
        )
        norm = tl.load(total + at, mask=head < heads, other=float("inf"))
        mean = tl.load(along + at, mask=head < heads, other=0.0)
        weights, slope = _slope(vectors, above, values, seen & (key < n_keys), scale, norm, mean)
        acc += tl.dot(tl.trans(slope.to(vectors.dtype)), vectors)
        acc += tl.dot(tl.trans(weights.to(above.dtype)), above)
    channel = tl.arange(0, C)
    mask = (key < n_keys)[:, None] & (channel < width)[None, :]
    at = (row * n_keys + key)[:, None] * width + channel[None, :]
    tl.store(dkeys + at, acc.to(dkeys.dtype.element_ty), mask=mask)


@triton.jit
def _listed(  # type: ignore[no-untyped-def]
    q, grad, total, along, entries, pairs, starts, dentries, scale, heads, width, H: tl.constexpr, C: tl.constexpr
):
    """Gradient of one entry: a loop over the queries that chose it."""
    entry, head, channel = tl.program_id(0).to(tl.int64), tl.arange(0, H), tl.arange(0, C)
    value = tl.load(entries + entry * width + channel, mask=channel < width, other=0.0).to(total.dtype.element_ty)
    acc = tl.zeros([C], total.dtype.element_ty)
    for pair in range(tl.load(starts + entry), tl.load(starts + entry + 1)):
        at = tl.load(pairs + pair) * heads + head
        vectors = _vectors(q, at, width, C, head < heads).to(value.dtype)
        above = _vectors(grad, at, width, C, head < heads).to(value.dtype)
        norm = tl.load(total + at, mask=head < heads, other=float("inf"))
        weights = tl.exp(tl.sum(vectors * value[None, :], axis=1) * scale - norm)
        mean = tl.load(along + at, mask=head < heads, other=0.0)
        slope = weights * (tl.sum(above * value[None, :], axis=1) - mean) * scale
        acc += tl.sum(slope[:, None] * vectors + weights[:, None] * above, axis=0)
    tl.store(dentries + entry * width + channel, acc.to(dentries.dtype.element_ty), mask=channel < width)
