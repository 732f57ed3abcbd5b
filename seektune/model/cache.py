"""What decoding keeps of the tokens before: window keys, compressed entries and unfinished windows of every layer.

Shapes: B rows, T tokens of a call, N kept and new tokens, C channels, E entries, F entries made in a call.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seektune.model.config import CSA, SLIDING, DeepseekV4Config
from seektune.sequence import SequenceLayout, Windows

SPARE = 32
"""Tokens that are appended to a tail before what it keeps is moved back to its beginning."""
ROLLBACK = 16
"""Tokens that can be taken back unless a cache is made for more."""


@dataclass(frozen=True)
class Tail:
    """Values of the last `keep` tokens of each row, zeros before a row's first; rows end at one place."""

    keep: int
    values: Tensor
    """`[B, keep + SPARE, C]`."""

    @classmethod
    def empty(cls, rows: int, keep: int, channels: int, dtype: torch.dtype, device: torch.device) -> "Tail":
        """Of no token yet."""
        return cls(keep, torch.zeros(rows, keep + SPARE, channels, dtype=dtype, device=device))


@dataclass(frozen=True)
class Compressed:
    """Entries of each row, and the compressor's values and gates of the tokens that later entries need."""

    ratio: int
    tail: Tail
    entries: Tensor
    """`[B, E + 1, C]`; the last is a place for what is no entry."""

    @property
    def most(self) -> int:
        """Entries that there is room for."""
        return self.entries.shape[1] - 1

    def reached(self, tokens: int) -> int:
        """How many entries steps over so many tokens may have written."""
        return min(tokens // self.ratio + 1, self.entries.shape[1])


@dataclass(frozen=True)
class LayerCache:
    """What one layer keeps; memory per token is that of its entries, the rest does not grow."""

    keys: Tail
    """Rotated keys of the window."""
    compressed: Compressed | None = None
    index: Compressed | None = None
    """The indexer's; None where there can never be more entries than it may choose."""

    def compressors(self) -> Iterator[Compressed]:
        """Those that the layer has."""
        return (each for each in (self.compressed, self.index) if each is not None)

    def tails(self) -> Iterator[Tail]:
        """Of the window and of the compressors."""
        yield self.keys
        yield from (each.tail for each in self.compressors())


class Cache:
    """The state of a batch of rows; each row holds one text, and rows may have different lengths.

    `model(ids, cache=cache)` goes on where each row stands. A cache is written in place: what a call that raised has
    written is not counted, and the next call writes over it.
    """

    def __init__(self, layers: dict[int, LayerCache], rows: int, max_length: int, rollback: int):
        self.layers, self.max_length, self.max_rollback = layers, max_length, rollback
        self.lengths = [0] * rows
        """Tokens of each row so far."""
        self.used = 0
        """Tokens that were appended to every tail since it was last moved."""
        self._room = [0] * rows
        """Tokens that can be taken back."""
        self._touched = 0
        """Entries of later tokens are as they were made: zero."""

    @classmethod
    def of(
        cls,
        config: DeepseekV4Config,
        layers: range,
        rows: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
        rollback: int = ROLLBACK,
    ) -> "Cache":
        """An empty cache of some layers.

        Raises:
            ValueError: a size is not positive.
        """
        for name, size, least in (("batch_size", rows, 1), ("max_length", max_length, 1), ("rollback", rollback, 0)):
            if size < least:
                raise ValueError(f"a cache's {name} must be {least} or more, not {size}")
        # buffers outlive any inference mode that they are made in
        with torch.inference_mode(False):
            made = {layer: _layer(config, layer, rows, max_length, rollback, dtype, device) for layer in layers}
        return cls(made, rows, max_length, rollback)

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return len(self.lengths)

    def nbytes(self) -> int:
        """Memory of all buffers in bytes, whatever they hold."""
        entries = sum(each.entries.nbytes for each in self._compressors())
        return entries + sum(tail.values.nbytes for tail in self._tails())

    def step(self, length: int, counts: Sequence[int] | None = None) -> "Step":
        """A call with `length` tokens for each row, of which the first `counts` are its text; None = all.

        Raises:
            ValueError: a row would grow beyond `max_length`.
        """
        counts = [length] * self.rows if counts is None else list(counts)
        assert len(counts) == self.rows
        assert all(0 <= count <= length for count in counts)
        for row, (before, count) in enumerate(zip(self.lengths, counts, strict=True)):
            if before + count > self.max_length:
                raise ValueError(
                    f"row {row} of the cache holds {before} tokens; {count} more are too many for its max_length "
                    f"{self.max_length}"
                )
        self._touched = max(self._touched, max(self.lengths) + length)
        return Step(self, length, counts)

    @torch.no_grad()
    def rollback(self, tokens: int | Sequence[int]) -> None:
        """Forget the last `tokens` of every row, or as many as a list names for each.

        Raises:
            ValueError: a row is shorter, or they are more than can be taken back.
        """
        back = [tokens] * self.rows if isinstance(tokens, int) else list(tokens)
        assert len(back) == self.rows
        for row, (count, room) in enumerate(zip(back, self._room, strict=True)):
            if not 0 <= count <= room:
                raise ValueError(
                    f"row {row} of the cache can go back by 0 to {room} tokens now, not {count}; it holds "
                    f"{self.lengths[row]} and is made for rollback={self.max_rollback}"
                )
        self.lengths = [length - count for length, count in zip(self.lengths, back, strict=True)]
        self._room = [room - count for room, count in zip(self._room, back, strict=True)]
        if len(set(back)) == 1 and back[0] <= self.used:
            self.used -= back[0]
            return
        for tail in self._tails():
            tail.values[:, : tail.keep] = _from(tail.values, [self.used - count for count in back], tail.keep)
        self.used = 0

    @torch.no_grad()
    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Empty some rows, or all: nothing of their text remains."""
        for row in range(self.rows) if rows is None else rows:
            for tail in self._tails():
                tail.values[row] = 0
            for each in self._compressors():
                each.entries[row, : each.reached(self._touched)] = 0
            self.lengths[row] = self._room[row] = 0
        if rows is None:
            self.used = 0

    @torch.no_grad()
    def select(self, rows: Sequence[int]) -> "Cache":
        """A new cache with copies of these rows, in this order; a row may be named several times."""
        made = Cache({}, len(rows), self.max_length, self.max_rollback)
        with torch.inference_mode(False):
            touched = self._touched
            made.layers = {layer: _selected(kept, list(rows), touched) for layer, kept in self.layers.items()}
        made._touched = touched
        made.lengths, made._room = [self.lengths[row] for row in rows], [self._room[row] for row in rows]
        made.used = self.used
        return made

    def advance(self, step: "Step") -> None:
        """Count the tokens of a step that has run."""
        for tail, values in step.kept:
            tail.values[:, : tail.keep] = values
        self.used = 0 if step.kept else self.used + step.length
        self.lengths = [length + count for length, count in zip(self.lengths, step.counts, strict=True)]
        room = [room + count for room, count in zip(self._room, step.counts, strict=True)]
        self._room = [min(each, self.max_rollback) for each in room]

    def make_room(self, tokens: int) -> None:
        """Move what tails keep to their beginning, where the next tokens would not fit behind it."""
        if self.used + tokens <= SPARE:
            return
        for tail in self._tails():
            tail.values[:, : tail.keep] = tail.values[:, self.used : self.used + tail.keep].clone()
        self.used = 0

    def _tails(self) -> Iterator[Tail]:
        return (tail for layer in self.layers.values() for tail in layer.tails())

    def _compressors(self) -> Iterator[Compressed]:
        return (each for layer in self.layers.values() for each in layer.compressors())


class Step:
    """One call of the model: where its tokens stand, and what tails will keep when it has run."""

    def __init__(self, cache: Cache, length: int, counts: list[int]):
        self.cache, self.length, self.counts = cache, length, counts
        self.kept: list[tuple[Tail, Tensor]] = []
        self._in_place = length <= SPARE and all(count == length for count in counts)
        if self._in_place:
            cache.make_room(length)
        self._before = list(cache.lengths)
        self._plans: dict[int, Plan] = {}

    def layout(self, device: torch.device) -> "CachedLayout":
        """The layout of the call's tokens; what stands after a row's own is padding."""
        index_T = torch.arange(self.length, device=device)
        positions = torch.tensor(self._before, device=device)[:, None] + index_T
        documents = (index_T < torch.tensor(self.counts, device=device)[:, None]).long()
        return CachedLayout(positions, documents, self)

    def preceded(self, tail: Tail, x_BTC: Tensor, count: int) -> Tensor:
        """`[B, count + T, C]`: the tokens of the call after those before them, a view where that can be."""
        assert count <= tail.keep
        start = self.cache.used
        stop = start + tail.keep
        if self._in_place:
            tail.values[:, stop : stop + self.length] = x_BTC
            return tail.values[:, stop - count : stop + self.length]
        whole = torch.cat([tail.values[:, start:stop], x_BTC], dim=1)
        self.kept.append((tail, _from(whole, self.counts, tail.keep)))
        return whole[:, tail.keep - count :]

    def plan(self, ratio: int, layout: SequenceLayout) -> "Plan":
        """The windows that end in the call, the same for all layers of a ratio."""
        if ratio not in self._plans:
            self._plans[ratio] = self._make_plan(ratio, layout)
        return self._plans[ratio]

    def _make_plan(self, ratio: int, layout: SequenceLayout) -> "Plan":
        after = [(before + count) // ratio for before, count in zip(self._before, self.counts, strict=True)]
        made = max(end - before // ratio for end, before in zip(after, self._before, strict=True))
        before_B1 = torch.tensor(self._before, device=layout.positions.device)[:, None]
        number_BF = before_B1 // ratio + torch.arange(made, device=before_B1.device)
        # a row that makes fewer entries than others fills the rest with what is written over before anyone sees it
        last_BF = ((number_BF + 1) * ratio - 1 - before_B1).clamp(max=self.length - 1)
        count_BT = torch.where(layout.real, (layout.positions + 1) // ratio, 0)
        return Plan(last_BF, number_BF * ratio, count_BT, number_BF, max(after))


@dataclass(frozen=True)
class Plan:
    """Windows of a ratio in a step; see `Windows`."""

    last_BF: Tensor
    position_BF: Tensor
    count_BT: Tensor
    number_BF: Tensor
    """Which of its row's entries a window becomes."""
    entries: int
    """Entries of the longest row after the step."""


@dataclass(frozen=True)
class CachedWindows(Windows):
    """Windows that end in a step; queries see the entries that are kept, too."""

    step: Step
    plan: Plan
    kept: Compressed
    layer: LayerCache

    def preceded(self, x_BTC: Tensor, count: int) -> Tensor:
        """The tokens here after the `count` before them."""
        return self.step.preceded(self.kept.tail, x_BTC, count)

    def of_row(self, entries_BEC: Tensor) -> Tensor:
        """Entries made here, put to those that are kept: all of them, `[B, E, C]`, as a view."""
        rows_B1 = torch.arange(entries_BEC.shape[0], device=entries_BEC.device)[:, None]
        self.kept.entries[rows_B1, self.plan.number_BF.clamp(max=self.kept.most)] = entries_BEC
        return self.kept.entries[:, : self.plan.entries]

    @property
    def most(self) -> int:
        """Entries that there is room for."""
        return self.kept.most

    @property
    def idle(self) -> bool:
        """Whether no window ends here."""
        return self.last_BE.shape[1] == 0

    def for_indexer(self) -> "CachedWindows":
        """The same windows with what the indexer keeps."""
        assert self.layer.index is not None
        return replace(self, kept=self.layer.index)


@dataclass(frozen=True)
class CachedLayout(SequenceLayout):
    """Layout of the tokens of a step, which go on where the cache stands."""

    step: Step
    layer: LayerCache | None = None

    def at(self, layer: int) -> "CachedLayout":
        """With what this layer keeps."""
        return replace(self, layer=self.step.cache.layers[layer])

    def preceded(self, x_BTC: Tensor, count: int) -> Tensor:
        """The tokens here after the `count` before them."""
        assert self.layer is not None
        return self.step.preceded(self.layer.keys, x_BTC, count)

    def followed(self) -> "CachedLayout":
        """All of them: who goes on token by token says which token comes next."""
        return self

    def windows(self, ratio: int) -> CachedWindows:
        """The windows that end here."""
        assert self.layer is not None
        assert self.layer.compressed is not None
        plan, kept = self.step.plan(ratio, self), self.layer.compressed
        first_BT = torch.zeros_like(plan.count_BT)
        return CachedWindows(
            ratio, plan.last_BF, plan.position_BF, first_BT, plan.count_BT, self.step, plan, kept, self.layer
        )


def _layer(
    config: DeepseekV4Config,
    layer: int,
    rows: int,
    max_length: int,
    rollback: int,
    dtype: torch.dtype,
    device: torch.device,
) -> LayerCache:
    ratio = config.ratio(layer)
    keys = Tail.empty(rows, config.sliding_window - 1 + rollback, config.head_dim, dtype, device)
    if ratio == SLIDING:
        return LayerCache(keys)
    most, reach = max_length // ratio, 2 if ratio == CSA else 1

    def compressed(width: int) -> Compressed:
        # values and gates, of the window before too where windows overlap
        state = torch.promote_types(dtype, torch.float32)
        tail = Tail.empty(rows, ratio * reach - 1 + rollback, 2 * reach * width, state, device)
        return Compressed(ratio, tail, torch.zeros(rows, most + 1, width, dtype=dtype, device=device))

    chooses = ratio == CSA and most > config.index_topk
    return LayerCache(keys, compressed(config.head_dim), compressed(config.index_head_dim) if chooses else None)


def _selected(layer: LayerCache, rows: list[int], touched: int) -> LayerCache:
    def tail(x: Tail) -> Tail:
        return replace(x, values=x.values[rows])

    def compressed(x: Compressed | None) -> Compressed | None:
        if x is None:
            return None
        entries = x.entries.new_zeros(len(rows), *x.entries.shape[1:])
        entries[:, : x.reached(touched)] = x.entries[rows, : x.reached(touched)]
        return Compressed(x.ratio, tail(x.tail), entries)

    return LayerCache(tail(layer.keys), compressed(layer.compressed), compressed(layer.index))


def _from(x_BNC: Tensor, starts: Sequence[int], length: int) -> Tensor:
    """A copy of the `length` tokens from `starts` on in each row; what would lie before the first is repeated."""
    start_B1 = torch.tensor(starts, device=x_BNC.device)[:, None]
    index_BN = (start_B1 + torch.arange(length, device=x_BNC.device)).clamp(min=0)
    return x_BNC[torch.arange(len(starts), device=x_BNC.device)[:, None], index_BN]
