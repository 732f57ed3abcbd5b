"""Sparse attention for NVIDIA GPUs: one product of a query's heads and its keys.

Shapes: B rows, T queries, N keys, H heads, C head width, E entries, K slots of a list of entries. There are no atomics,
so results are deterministic.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.eager.sparse_attention import sparse_attention as eager
from seektune.kernels.reference.precision import upcast
from seektune.kernels.reference.sparse_attention import Chosen, Visible
from seektune.kernels.triton.sparse_attention_gradients import list_gradient, query_gradients, range_gradient
from seektune.kernels.triton.tiles import entries_at, fits, heads_of, keys_of, product, run, tile, vectors_at


@dataclass(frozen=True)
class _Far:
    """Entries of each query: the list `index`, or `count` entries from `first` on."""

    index: Tensor
    first: Tensor
    count: Tensor
    places: int
    is_list: bool

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """In the order of the kernels' arguments."""
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
    """See `reference.sparse_attention`; fp32 heads too wide for shared memory use `eager`."""
    assert keys_BNC.shape[1] >= q_BTHC.shape[1], "every query has a key"
    if q_BTHC.shape[1] == 0 or not fits(q_BTHC):
        return eager(q_BTHC, keys_BNC, entries_BEC, sink_H, positions_BT, window, visible)
    reach_BT = positions_BT.clamp(max=window - 1).contiguous()
    unused = torch.zeros_like(reach_BT)
    if isinstance(visible, Chosen):
        far = _Far(visible.index_BTK.contiguous(), unused, unused, visible.index_BTK.shape[2], True)
    else:
        far = _Far(unused, visible.first_BT.contiguous(), visible.count_BT.contiguous(), entries_BEC.shape[1], False)
    inputs = (x.contiguous() for x in (q_BTHC, keys_BNC, entries_BEC, sink_H))
    out: Tensor = _SparseAttention.apply(*inputs, reach_BT, window, far)
    return out


class _SparseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, keys, entries, sink, reach, window, far):  # type: ignore[no-untyped-def]
        rows, length, heads, width = q.shape
        out = torch.empty_like(q)
        total = torch.empty(rows, length, heads, device=q.device, dtype=upcast(q[:0]).dtype)
        shape = length, keys.shape[1], entries.shape[1], heads, width, far.places
        grid = rows * length, triton.cdiv(heads, heads_of(q))
        seen = q, keys, entries, sink, reach, *far.tensors()
        _forward[grid](
            *seen, out, total, width**-0.5, *shape, heads_of(q), tile(width), keys_of(q), far.is_list, **run(q, 2)
        )
        ctx.save_for_backward(*seen, out, total)
        ctx.far = far
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, keys, entries, sink, reach, index, first, count, out, total = ctx.saved_tensors
        far = ctx.far
        grad = grad.contiguous()
        seen = q, keys, entries, sink, reach, index, first, count
        dq, dsink, along = query_gradients(seen, out, grad, total, far.places, far.is_list)
        sums = (q, grad, total, along)
        own = torch.arange(keys.shape[1] - q.shape[1], keys.shape[1], device=q.device)
        nearest = (own - reach).clamp(min=0)
        dkeys = range_gradient(*sums, keys, nearest, own + 1 - nearest)
        dentries = list_gradient(*sums, entries, index) if far.is_list else range_gradient(*sums, entries, first, count)
        return dq, dkeys, dentries, dsink.sum(dim=(0, 1)).to(sink.dtype), None, None, None


@triton.jit
def _attend(q, keys, seen, scale, top, total, acc):  # type: ignore[no-untyped-def]
    """Add a tile of keys `[N, C]` to the running softmax of `[H]` heads."""
    scores = product(q, tl.trans(keys)) * scale
    scores = tl.where(seen[None, :], scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, axis=1))
    weights = tl.exp(scores - higher[:, None])
    rescale = tl.exp(top - higher)
    acc = acc * rescale[:, None] + product(weights.to(keys.dtype), keys)
    return higher, total * rescale + tl.sum(weights, axis=1), acc


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    q, keys, entries, sink, reach, index, first, count, out, total, scale, length, n_keys, n_entries, heads, width,
    places, H: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    row = token // length
    query = token % length
    head = tl.program_id(1) * H + tl.arange(0, H)
    vectors = vectors_at(q, token * heads + head, width, C, head < heads)
    wide = total.dtype.element_ty
    top = tl.load(sink + head, mask=head < heads, other=0.0).to(wide)
    share = tl.full([H], 1.0, wide)
    acc = tl.zeros([H, C], wide)
    own = n_keys - length + query
    begin = tl.maximum(own - tl.load(reach + token), 0)
    for start in range(begin, own + 1, TILE):
        key = start + tl.arange(0, TILE)
        values = vectors_at(keys, row * n_keys + key, width, C, key <= own)
        top, share, acc = _attend(vectors, values, key <= own, scale, top, share, acc)
    end = places if LIST else tl.load(count + token)
    for start in range(0, end, TILE):
        entry, seen = entries_at(index, first, count, token, start + tl.arange(0, TILE), places, LIST)
        values = vectors_at(entries, row * n_entries + entry, width, C, seen)
        top, share, acc = _attend(vectors, values, seen, scale, top, share, acc)
    channel = tl.arange(0, C)
    at = (token * heads + head)[:, None] * width + channel[None, :]
    mask = (head < heads)[:, None] & (channel < width)[None, :]
    tl.store(out + at, (acc / share[:, None]).to(out.dtype.element_ty), mask=mask)
    tl.store(total + token * heads + head, top + tl.log(share), mask=head < heads)
