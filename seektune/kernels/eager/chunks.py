"""Split the queries of sparse attention into chunks, with the keys and entries that each chunk needs.

Shapes: B rows, T queries, Q queries of a chunk, M window keys of a chunk, C width, E entries, K entries that a chunk
sees, G groups of queries that share a matrix of entries: B for a prefix of entries, B * Q for chosen ones.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from seektune.kernels.reference.sparse_attention import Chosen, Prefix, Visible

GATHERED = 2**19
"""Most elements of chosen entries that a chunk gathers, about a core's cache."""
LARGEST = 32
SMALLEST = 8
"""Queries of a chunk. More waste products on window keys that only some queries see; fewer need more calls."""


Far = tuple[slice | Tensor, Tensor | None]
"""Entries of a chunk and their bias, as in `Chunk`."""


@dataclass(frozen=True)
class Chunk:
    """Queries `part`, their window keys `near`, and their entries: a slice, or a list for each query."""

    part: slice
    near: slice
    near_bias_BQ1M: Tensor
    """0 if a query sees a key, otherwise -inf; an addition is faster than `torch.where`."""
    far: slice | Tensor
    """A slice of the entries, or rows of the flattened entries, `[B * Q * K]`."""
    far_bias_BQ1K: Tensor | None
    """None if every query sees all of `far`."""

    def far_values(self, entries_BEC: Tensor) -> Tensor:
        """The entries of the chunk, `[G, K, C]`."""
        if isinstance(self.far, slice):
            return entries_BEC[:, self.far]
        flat = entries_BEC.flatten(0, 1).index_select(0, self.far)
        return flat.unflatten(0, (entries_BEC.shape[0] * (self.part.stop - self.part.start), -1))

    def add_far(self, grad_BEC: Tensor, far_GKC: Tensor) -> None:
        """Add the gradients of `far_values` to those of the entries, in the order of the lists."""
        if isinstance(self.far, slice):
            grad_BEC[:, self.far] += far_GKC
        else:
            grad_BEC.view(-1, grad_BEC.shape[-1]).index_add_(0, self.far, far_GKC.flatten(0, 1))


def chunks(reach_BT: Tensor, keys: int, entries_BEC: Tensor, window: int, visible: Visible) -> Iterator[Chunk]:
    """All chunks in order; values are synced once, not once per chunk. Query t sees `reach + 1` of `keys` keys."""
    rows, length = reach_BT.shape
    size = _size(rows, entries_BEC.shape[-1], visible)
    full = [least == window - 1 for least in _extreme(reach_BT, size, torch.min)]
    far: Iterator[Far]
    if isinstance(visible, Chosen):
        far = _chosen(visible, size, entries_BEC)
    else:
        far = _prefix(visible, size, entries_BEC)
    inner: Tensor | None = None
    for number, (entries, far_bias) in enumerate(far):
        part = slice(number * size, min((number + 1) * size, length))
        own = keys - length + part.start
        near = slice(max(own - window + 1, 0), keys - length + part.stop)
        # a window that the first key cuts short has another shape
        same = full[number] and part.stop - part.start == size and own >= window - 1
        near_bias = inner if same and inner is not None else _near_bias(reach_BT[:, part], own - near.start, near)
        inner = near_bias if same else inner
        yield Chunk(part, near, near_bias, entries, far_bias)


def _size(rows: int, width: int, visible: Visible) -> int:
    if isinstance(visible, Prefix):
        return LARGEST
    gathered = max(rows * visible.index_BTK.shape[-1] * width, 1)
    return min(max(GATHERED // gathered, SMALLEST), LARGEST)


def _extreme(x_BT: Tensor, size: int, extreme: Callable[[Tensor], Tensor]) -> list[int]:
    return torch.stack([extreme(part) for part in x_BT.split(size, dim=1)]).tolist()


def _bias(seen: Tensor) -> Tensor:
    return torch.where(seen, 0.0, -torch.inf).unsqueeze(2)


def _near_bias(reach_BQ: Tensor, offset: int, near: slice) -> Tensor:
    index = torch.arange(near.stop - near.start, device=reach_BQ.device)
    behind_QM = index[offset : offset + reach_BQ.shape[1], None] - index
    return _bias((behind_QM >= 0) & (behind_QM <= reach_BQ.unsqueeze(-1)))


def _prefix(visible: Prefix, size: int, entries_BEC: Tensor) -> Iterator[Far]:
    """Per chunk, the smallest slice of all entries that any query sees, and a bias if some queries see fewer."""
    first_BT = visible.first_BT
    end_BT = visible.first_BT + visible.count_BT
    some = visible.count_BT > 0
    # queries that see nothing do not extend the slice; their bias is -inf
    lows = _extreme(torch.where(some, first_BT, entries_BEC.shape[1]), size, torch.min)
    highs = _extreme(torch.where(some, end_BT, 0), size, torch.max)
    latest = _extreme(first_BT, size, torch.max)
    soonest = _extreme(end_BT, size, torch.min)
    for number, (low, high) in enumerate(zip(lows, highs, strict=True)):
        far = slice(min(low, high), high)
        if high == 0 or (latest[number] <= low and soonest[number] >= high):
            yield far, None
            continue
        part = slice(number * size, (number + 1) * size)
        index = torch.arange(far.start, far.stop, device=first_BT.device)
        yield far, _bias((index >= first_BT[:, part, None]) & (index < end_BT[:, part, None]))


def _chosen(visible: Chosen, size: int, entries_BEC: Tensor) -> Iterator[Far]:
    """Per chunk, the rows of its queries' entries, and a bias if some slots of the lists are empty."""
    rows, entries, _ = entries_BEC.shape
    index_BTK = visible.index_BTK if entries else visible.index_BTK[..., :0]
    row_starts = torch.arange(rows, device=index_BTK.device)[:, None, None] * entries
    for index_BQK in index_BTK.split(size, dim=1):
        seen = index_BQK >= 0
        yield (index_BQK.clamp(min=0) + row_starts).flatten(), None if bool(seen.all()) else _bias(seen)
