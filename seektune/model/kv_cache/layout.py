"""A forward pass that continues from a cache: the layout and the compression windows of its tokens.

Shapes: B rows, T tokens of a call, C channels, E entries, F entries made in the call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seektune.model.kv_cache.layer import SPARE, Compressed, LayerCache, Tail, run_of
from seektune.model.kv_cache.state import CacheState
from seektune.sequence import SequenceLayout, Value, Windows


class CacheStep:
    """One forward pass: positions of its tokens, and the values that tails keep when it is done."""

    def __init__(self, state: CacheState, length: int, counts: list[int]):
        self.state = state
        self.length = length
        self.counts = counts
        self.kept: list[tuple[Tail, Tensor]] = []
        self._in_place = length <= SPARE and all(count == length for count in counts)
        if self._in_place:
            state.move_tails(length)
        self._before = list(state.lengths)
        self._plans: dict[int, WindowPlan] = {}
        self._made: dict[Callable[[Tensor], Any], Any] = {}

    def layout(self, device: torch.device) -> "CachedLayout":
        """The layout of the call's tokens; tokens after a row's count are padding."""
        index_T = torch.arange(self.length, device=device)
        positions = torch.tensor(self._before, device=device)[:, None] + index_T
        documents = (index_T < torch.tensor(self.counts, device=device)[:, None]).long()
        return CachedLayout(positions, documents, self)

    def preceded(self, tail: Tail, x_BTC: Tensor, count: int) -> Tensor:
        """`[B, count + T, C]`: the `count` preceding tokens and those of the call, as a view if possible."""
        assert count <= tail.keep
        start = self.state.used
        stop = start + tail.keep
        if self._in_place:
            tail.values.narrow(1, stop, self.length).copy_(x_BTC)
            return tail.values.narrow(1, stop - count, count + self.length)
        whole = torch.cat([tail.values[:, start:stop], x_BTC], dim=1)
        self.kept.append((tail, run_of(whole, self.counts, tail.keep)))
        return whole[:, tail.keep - count :]

    def at_positions(self, make: Callable[[Tensor], Value], layout: SequenceLayout) -> Value:
        """`make(positions)`, once for all layers."""
        made: Value | None = self._made.get(make)
        if made is None:
            made = self._made[make] = make(layout.positions)
        return made

    def plan(self, ratio: int, layout: SequenceLayout) -> "WindowPlan":
        """The windows that end in the call, the same for all layers of a ratio."""
        if ratio not in self._plans:
            self._plans[ratio] = self._make_plan(ratio, layout)
        return self._plans[ratio]

    def windows(self, ratio: int, plan: "WindowPlan", kept: Compressed, layer: LayerCache) -> "CachedWindows":
        """The windows of a plan, with the cache of a layer's compressor or indexer."""
        places = plan.last_BF, plan.position_BF, plan.first_BT, plan.count_BT
        return CachedWindows(ratio, *places, self, plan, kept, layer)

    def _make_plan(self, ratio: int, layout: SequenceLayout) -> "WindowPlan":
        after = [(before + count) // ratio for before, count in zip(self._before, self.counts, strict=True)]
        made = max(end - before // ratio for end, before in zip(after, self._before, strict=True))
        count_BT = (layout.positions + 1) // ratio
        if not self._in_place:
            count_BT = torch.where(layout.real, count_BT, 0)
        nothing_BT = torch.zeros_like(count_BT)
        if made == 0:
            none_BF = nothing_BT[:, :0]
            return WindowPlan(none_BF, none_BF, nothing_BT, count_BT, none_BF, max(after))
        before_B1 = torch.tensor(self._before, device=layout.positions.device)[:, None]
        number_BF = before_B1 // ratio + torch.arange(made, device=before_B1.device)
        # a row that makes fewer entries than others fills the rest with what is written over before anyone sees it
        last_BF = ((number_BF + 1) * ratio - 1 - before_B1).clamp(max=self.length - 1)
        return WindowPlan(last_BF, number_BF * ratio, nothing_BT, count_BT, number_BF, max(after))


@dataclass(frozen=True)
class WindowPlan:
    """Windows of a ratio in a step; see `Windows`."""

    last_BF: Tensor
    position_BF: Tensor
    first_BT: Tensor
    count_BT: Tensor
    number_BF: Tensor
    """Index of each window's entry in its row."""
    entries: int
    """Entries of the longest row after the step."""


@dataclass(frozen=True)
class CachedWindows(Windows):
    """Windows that end in a step; queries also see cached entries."""

    step: CacheStep
    plan: WindowPlan
    kept: Compressed
    layer: LayerCache

    def preceded(self, x_BTC: Tensor, count: int) -> Tensor:
        """The tokens here after the `count` before them."""
        return self.step.preceded(self.kept.tail, x_BTC, count)

    def of_row(self, entries_BEC: Tensor) -> Tensor:
        """Writes the new entries to the cache; returns a view of all entries, `[B, E, C]`."""
        if not self.idle:
            rows_B1 = torch.arange(entries_BEC.shape[0], device=entries_BEC.device)[:, None]
            self.kept.entries[rows_B1, self.plan.number_BF.clamp(max=self.kept.most)] = entries_BEC
        return self.kept.entries.narrow(1, 0, self.plan.entries)

    @property
    def most(self) -> int:
        """Maximum number of entries."""
        return self.kept.limit

    @property
    def idle(self) -> bool:
        """Whether no window ends in this step."""
        return self.last_BE.shape[1] == 0

    def for_indexer(self) -> "CachedWindows":
        """The same windows with the indexer's cache."""
        assert self.layer.index is not None
        return self.step.windows(self.ratio, self.plan, self.layer.index, self.layer)


@dataclass(frozen=True)
class CachedLayout(SequenceLayout):
    """Layout of the tokens of a step that continues from a cache."""

    step: CacheStep
    layer: LayerCache | None = None

    def at(self, layer: int) -> "CachedLayout":
        """The layout with the cache of this layer."""
        return CachedLayout(self.positions, self.documents, self.step, self.step.state.layers[layer])

    def preceded(self, x_BTC: Tensor, count: int) -> Tensor:
        """The tokens here after the `count` before them."""
        assert self.layer is not None
        return self.step.preceded(self.layer.keys, x_BTC, count)

    def at_positions(self, make: Callable[[Tensor], Value]) -> Value:
        """`make(positions)`, once for all layers."""
        return self.step.at_positions(make, self)

    def followed(self) -> "CachedLayout":
        """All positions: in decoding, the caller provides each next token."""
        return self

    def windows(self, ratio: int) -> CachedWindows:
        """The windows that end in this step."""
        assert self.layer is not None
        assert self.layer.compressed is not None
        return self.step.windows(ratio, self.step.plan(ratio, self), self.layer.compressed, self.layer)
