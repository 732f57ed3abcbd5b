"""A KV cache whose buffers keep shape and address: what a captured decode step reads and writes.

Lengths are a tensor, and a token's values are written at its position modulo the size of a ring, so that no host number
changes from step to step. Shapes: R rows, N tokens of a ring, C channels, E entries.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from seektune.model.kv_cache.cache import KVCache
from seektune.model.kv_cache.layer import Compressed, LayerCache, Tail


@dataclass(frozen=True)
class Ring:
    """Values of the last tokens of each row, `[R, N, C]`: position p is at p modulo N."""

    values: Tensor

    @classmethod
    def like(cls, tail: Tail, rows: int) -> "Ring":
        """An empty ring for what a tail keeps and the next token."""
        return cls(tail.values.new_zeros(rows, tail.keep + 1, tail.values.shape[2]))

    def preceded(self, x_R1C: Tensor, positions_R1: Tensor, count: int) -> Tensor:
        """Write a token of each row; `[R, count + 1, C]`: that token after the `count` before it."""
        size = self.values.shape[1]
        rows_R1 = torch.arange(len(x_R1C), device=x_R1C.device)[:, None]
        self.values.index_put_((rows_R1, positions_R1 % size), x_R1C)
        index = positions_R1 + torch.arange(-count, 1, device=x_R1C.device)
        return self.values[rows_R1, index % size]

    def load(self, tail: Tail, used: int, lengths: list[int]) -> None:
        """Copy the rows of a tail."""
        index = self._places(tail.keep, lengths)
        self.values[torch.arange(len(lengths))[:, None], index] = tail.values[:, used : used + tail.keep]

    def store(self, tail: Tail, lengths: list[int]) -> None:
        """Copy the rows back to the start of a tail's buffer; zeros before a row's first token."""
        known = torch.tensor(lengths)[:, None] >= torch.arange(tail.keep, 0, -1)
        values = self.values[torch.arange(len(lengths))[:, None], self._places(tail.keep, lengths)]
        tail.values[:, : tail.keep] = torch.where(known.unsqueeze(-1).to(values.device), values, 0)

    def _places(self, keep: int, lengths: list[int]) -> Tensor:
        """Indices of the last `keep` tokens."""
        return (torch.tensor(lengths)[:, None] + torch.arange(-keep, 0)) % self.values.shape[1]


@dataclass(frozen=True)
class StaticEntries:
    """The entries of a compressor, `[R, E, C]`, of which the last is never read, and the ring of its inputs."""

    ratio: int
    limit: int
    """Maximum number of entries of a row."""
    ring: Ring
    values: Tensor

    @classmethod
    def like(cls, cache: Compressed, rows: int, room: int) -> "StaticEntries":
        """Empty ones, with a capacity of `room` tokens."""
        values = cache.entries.new_zeros(rows, room // cache.ratio + 1, cache.entries.shape[2])
        return cls(cache.ratio, cache.limit, Ring.like(cache.tail, rows), values)

    def first(self, rows: int) -> "StaticEntries":
        """As `StaticCache.first`."""
        return StaticEntries(self.ratio, self.limit, Ring(self.ring.values[:rows]), self.values[:rows])


@dataclass(frozen=True)
class StaticLayer:
    """The buffers of a layer, as `LayerCache`."""

    keys: Ring
    compressed: StaticEntries | None
    index: StaticEntries | None

    @classmethod
    def like(cls, cache: LayerCache, rows: int, room: int) -> "StaticLayer":
        """Empty buffers."""

        def entries(compressed: Compressed | None) -> StaticEntries | None:
            return None if compressed is None else StaticEntries.like(compressed, rows, room)

        return cls(Ring.like(cache.keys, rows), entries(cache.compressed), entries(cache.index))

    def first(self, rows: int) -> "StaticLayer":
        """As `StaticCache.first`."""
        compressed = self.compressed and self.compressed.first(rows)
        return StaticLayer(Ring(self.keys.values[:rows]), compressed, self.index and self.index.first(rows))

    def compressors(self) -> Iterator[StaticEntries]:
        """As `LayerCache.compressors`."""
        return (each for each in (self.compressed, self.index) if each is not None)

    def rings(self) -> Iterator[Ring]:
        """As `LayerCache.tails`."""
        yield self.keys
        yield from (each.ring for each in self.compressors())


@dataclass(frozen=True)
class StaticCache:
    """The buffers of all layers for at most `room` tokens of each row."""

    room: int
    layers: dict[int, StaticLayer]
    positions_R1: Tensor
    """Of the next token of each row."""

    @classmethod
    def like(cls, cache: KVCache, rows: int) -> "StaticCache":
        """Empty buffers for the rows of a cache, up to its present capacity."""
        device = next(cache.tails()).values.device
        with torch.inference_mode(False):
            layers = {layer: StaticLayer.like(each, rows, cache.room) for layer, each in cache.layers.items()}
            return cls(cache.room, layers, torch.zeros(rows, 1, dtype=torch.int64, device=device))

    @property
    def rows(self) -> int:
        """R."""
        return len(self.positions_R1)

    def first(self, rows: int) -> "StaticCache":
        """The buffers of the first rows, in the same memory."""
        with torch.inference_mode(False):
            layers = {number: layer.first(rows) for number, layer in self.layers.items()}
            return StaticCache(self.room, layers, self.positions_R1[:rows])

    @property
    def nbytes(self) -> int:
        """Size of all buffers in bytes."""
        return sum(x.nbytes for x in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """All buffers."""
        yield self.positions_R1
        for layer in self.layers.values():
            yield from (ring.values for ring in layer.rings())
            yield from (entries.values for entries in layer.compressors())

    @torch.no_grad()
    def load(self, cache: KVCache) -> None:
        """Copy the rows of a cache; those that are left begin anew, with whatever their buffers have."""
        lengths_B1 = torch.tensor(cache.lengths)[:, None]
        self.positions_R1.zero_()
        self.positions_R1[: cache.rows] = lengths_B1.to(self.positions_R1.device)
        for layer, theirs in cache.layers.items():
            mine = self.layers[layer]
            for ring, tail in zip(mine.rings(), theirs.tails(), strict=True):
                ring.load(tail, cache.used, cache.lengths)
            for entries, compressed in zip(mine.compressors(), theirs.compressors(), strict=True):
                entries.values[: cache.rows, : compressed.entries.shape[1]] = compressed.entries

    @torch.no_grad()
    def store(self, cache: KVCache) -> None:
        """Copy the rows back into a cache, which knows their lengths and may have grown."""
        cache.begin_tails(max(cache.lengths))
        for layer, theirs in cache.layers.items():
            mine = self.layers[layer]
            for ring, tail in zip(mine.rings(), theirs.tails(), strict=True):
                ring.store(tail, cache.lengths)
            for entries, compressed in zip(mine.compressors(), theirs.compressors(), strict=True):
                known = entries.values[: cache.rows]
                compressed.entries[:, : known.shape[1]] = known
