"""The KV cache of one layer: window keys, compressed entries and unfinished windows.

Shapes: B rows, N kept tokens, C channels, E entries.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seektune.model.config import CSA, SLIDING, DeepseekV4Config

SPARE = 32
"""Tokens that are appended to a tail before its content is moved back to the start of the buffer."""


@dataclass(frozen=True)
class Tail:
    """Values of the last `keep` tokens of each row, zeros before a row's first; all rows end at the same index."""

    keep: int
    values: Tensor
    """`[B, keep + SPARE, C]`."""

    @classmethod
    def empty(cls, rows: int, keep: int, channels: int, dtype: torch.dtype, device: torch.device) -> "Tail":
        """An empty tail."""
        return cls(keep, torch.zeros(rows, keep + SPARE, channels, dtype=dtype, device=device))


@dataclass(frozen=True)
class Compressed:
    """Entries of each row, and the compressor's values and gates of the tokens that later entries need."""

    ratio: int
    tail: Tail
    entries: Tensor
    """`[B, E + 1, C]`; writes to the last index are discarded."""
    limit: int
    """Maximum number of entries; the buffer has this capacity, or a smaller one that grows."""

    @property
    def most(self) -> int:
        """Capacity in entries."""
        return self.entries.shape[1] - 1

    def written(self, tokens: int) -> Tensor:
        """A view of the entries that steps up to that many tokens may have written."""
        return self.entries[:, : min(tokens // self.ratio + 1, self.most)]


@dataclass(frozen=True)
class LayerCache:
    """The KV cache of a layer; only its entries grow with the tokens."""

    keys: Tail
    """Rotated keys of the window."""
    compressed: Compressed | None = None
    index: Compressed | None = None
    """The indexer's; None if there can never be more entries than its top-k."""

    def compressors(self) -> Iterator[Compressed]:
        """The compressed caches that the layer has."""
        return (each for each in (self.compressed, self.index) if each is not None)

    def tails(self) -> Iterator[Tail]:
        """The tails of the window and of the compressors."""
        yield self.keys
        yield from (each.tail for each in self.compressors())


def empty_layer(
    config: DeepseekV4Config,
    layer: int,
    rows: int,
    max_length: int,
    rollback: int,
    room: int,
    dtype: torch.dtype,
    device: torch.device,
) -> LayerCache:
    """An empty cache, with a capacity of `room` tokens of at most `max_length`."""
    ratio = config.ratio(layer)
    keys = Tail.empty(rows, config.sliding_window - 1 + rollback, config.head_dim, dtype, device)
    if ratio == SLIDING:
        return LayerCache(keys)
    most = max_length // ratio
    reach = 2 if ratio == CSA else 1

    def compressed(width: int) -> Compressed:
        # values and gates, of the window before too where windows overlap
        state = torch.promote_types(dtype, torch.float32)
        tail = Tail.empty(rows, ratio * reach - 1 + rollback, 2 * reach * width, state, device)
        return Compressed(ratio, tail, torch.zeros(rows, room // ratio + 1, width, dtype=dtype, device=device), most)

    chooses = ratio == CSA and most > config.index_topk
    return LayerCache(keys, compressed(config.head_dim), compressed(config.index_head_dim) if chooses else None)


@dataclass(frozen=True)
class CacheRows:
    """Rows of a layer's cache that are copied into another."""

    layer: LayerCache
    rows: list[int]
    used: int
    """End of the tails' rows in their buffers."""
    touched: int
    """Tokens whose entries may have been written."""


def gathered(parts: Sequence[CacheRows], room: int) -> LayerCache:
    """Copies of the rows of all parts, in their order, with a capacity of `room` tokens."""

    def tail(members: Sequence[Tail]) -> Tail:
        keep = members[0].keep
        values = members[0].values.new_zeros(rows, *members[0].values.shape[1:])
        runs = [x.values[part.rows, part.used : part.used + keep] for x, part in zip(members, parts, strict=True)]
        torch.cat(runs, out=values[:, :keep])
        return replace(members[0], values=values)

    def compressed(members: Sequence[Compressed | None]) -> Compressed | None:
        found = [x for x in members if x is not None]
        if not found:
            return None
        first = found[0]
        start = 0
        entries = first.entries.new_zeros(rows, room // first.ratio + 1, first.entries.shape[2])
        for x, part in zip(found, parts, strict=True):
            written = x.written(min(part.touched, room))
            entries[start : start + len(part.rows), : written.shape[1]] = written[part.rows]
            start += len(part.rows)
        return replace(first, tail=tail([x.tail for x in found]), entries=entries)

    rows = sum(len(part.rows) for part in parts)
    layers = [part.layer for part in parts]
    return LayerCache(
        tail([x.keys for x in layers]),
        compressed([x.compressed for x in layers]),
        compressed([x.index for x in layers]),
    )


def grown(layer: LayerCache, touched: int, room: int) -> LayerCache:
    """The same with a larger capacity; tails are shared."""

    def compressed(x: Compressed | None) -> Compressed | None:
        if x is None:
            return None
        entries = x.entries.new_zeros(len(x.entries), room // x.ratio + 1, x.entries.shape[2])
        written = x.written(touched)
        entries[:, : written.shape[1]] = written
        return replace(x, entries=entries)

    return replace(layer, compressed=compressed(layer.compressed), index=compressed(layer.index))


def run_of(x_BNC: Tensor, starts: Sequence[int], length: int) -> Tensor:
    """A copy of the `length` tokens from `starts` on in each row; before the first token, that one is repeated."""
    start_B1 = torch.tensor(starts, device=x_BNC.device)[:, None]
    index_BN = (start_B1 + torch.arange(length, device=x_BNC.device)).clamp(min=0)
    return x_BNC[torch.arange(len(starts), device=x_BNC.device)[:, None], index_BN]
