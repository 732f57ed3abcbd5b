"""The layout of one token per row that continues from a static cache: positions are a tensor, and shapes never change.

Shapes: R rows, C channels, E entries.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from seektune.model.kv_cache.static import StaticCache, StaticEntries, StaticLayer
from seektune.sequence import SequenceLayout, Value, Windows


@dataclass(frozen=True)
class StaticLayout(SequenceLayout):
    """Layout of the next token of each row."""

    cache: StaticCache
    layer: StaticLayer | None = None
    made: dict[Callable[[Tensor], Any], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, cache: StaticCache) -> "StaticLayout":
        """From the positions in a cache."""
        return cls(cache.positions_R1, torch.ones_like(cache.positions_R1), cache)

    def at(self, layer: int) -> "StaticLayout":
        """The layout with the cache of this layer."""
        return StaticLayout(self.positions, self.documents, self.cache, self.cache.layers[layer], self.made)

    def preceded(self, x_BTC: Tensor, count: int) -> Tensor:
        """The token here after the `count` before it."""
        assert self.layer is not None
        return self.layer.keys.preceded(x_BTC, self.positions, count)

    def at_positions(self, make: Callable[[Tensor], Value]) -> Value:
        """`make(positions)`, once for all layers."""
        made: Value | None = self.made.get(make)
        if made is None:
            made = self.made[make] = make(self.positions)
        return made

    def windows(self, ratio: int) -> "StaticWindows":
        """The window that would end with the token here."""
        assert self.layer is not None
        assert self.layer.compressed is not None
        nothing = torch.zeros_like(self.positions)
        start = (self.positions + 1 - ratio).clamp(min=0)
        places = nothing, start, nothing, (self.positions + 1) // ratio
        return StaticWindows(ratio, *places, self.positions, self.layer, self.layer.compressed)


@dataclass(frozen=True)
class StaticWindows(Windows):
    """A window of each row. An entry that is not complete is written, too: no query sees it until it is."""

    positions_R1: Tensor
    layer: StaticLayer
    entries: StaticEntries

    def preceded(self, x_BTC: Tensor, count: int) -> Tensor:
        """The token here after the `count` before it."""
        return self.entries.ring.preceded(x_BTC, self.positions_R1, count)

    def of_row(self, entries_BEC: Tensor) -> Tensor:
        """Writes the entry of each row; returns all entries, `[R, E, C]`."""
        rows_R1 = torch.arange(len(entries_BEC), device=entries_BEC.device)[:, None]
        self.entries.values.index_put_((rows_R1, self.positions_R1 // self.ratio), entries_BEC)
        return self.entries.values

    @property
    def most(self) -> int:
        """Maximum number of entries."""
        return self.entries.limit

    def for_indexer(self) -> "StaticWindows":
        """The same windows with the indexer's cache."""
        assert self.layer.index is not None
        places = self.last_BE, self.position_BE, self.first_BT, self.count_BT
        return StaticWindows(self.ratio, *places, self.positions_R1, self.layer, self.layer.index)
