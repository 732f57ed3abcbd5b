"""The KV cache of all layers for a batch of rows.

Shapes: B rows.
"""

from collections.abc import Sequence

import torch

from seektune.model.config import DeepseekV4Config
from seektune.model.dspark_config import LARGEST_BLOCK
from seektune.model.kv_cache.layer import CacheRows, LayerCache, empty_layer, gathered, grown, run_of
from seektune.model.kv_cache.layout import CacheStep
from seektune.model.kv_cache.state import CacheState

ROLLBACK = LARGEST_BLOCK
"""Default number of tokens that can be rolled back: a whole draft."""
FIRST_ROOM = 256
"""Initial capacity, in tokens, of a growing cache; it doubles when needed."""


class KVCache(CacheState):
    """The KV cache of a batch of rows; each row is one sequence, and rows may have different lengths.

    `model(ids, cache=cache)` continues each row. A cache is written in place: what a call that raised has
    written is not counted, and the next call writes over it.
    """

    def __init__(
        self, layers: dict[int, LayerCache], rows: int, max_length: int, rollback: int, grows: bool, room: int
    ):
        super().__init__(layers, rows)
        self.max_length = max_length
        self.max_rollback = rollback
        self.grows = grows
        self.room = room
        """Capacity in tokens; below `max_length` only in a growing cache."""
        self._back = [0] * rows
        """Tokens of each row that can be rolled back."""
        self._touched = 0
        """Entries of later tokens are still zero."""

    @classmethod
    def of(
        cls,
        config: DeepseekV4Config,
        layers: Sequence[int],
        rows: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
        rollback: int = ROLLBACK,
        grows: bool = False,
    ) -> "KVCache":
        """An empty cache of some layers.

        Raises:
            ValueError: a size is not positive.
        """
        for name, size, least in (("batch_size", rows, 1), ("max_length", max_length, 1), ("rollback", rollback, 0)):
            if size < least:
                raise ValueError(f"a cache's {name} must be {least} or more, not {size}")
        room = min(FIRST_ROOM, max_length) if grows else max_length
        # buffers outlive any inference mode that they are made in
        with torch.inference_mode(False):
            made = {
                layer: empty_layer(config, layer, rows, max_length, rollback, room, dtype, device) for layer in layers
            }
        return cls(made, rows, max_length, rollback, grows, room)

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return len(self.lengths)

    @property
    def rollbacks(self) -> list[int]:
        """Tokens of each row that can be rolled back now."""
        return list(self._back)

    def nbytes(self) -> int:
        """Size of all buffers in bytes."""
        entries = sum(each.entries.nbytes for each in self.compressors())
        return entries + sum(tail.values.nbytes for tail in self.tails())

    def row_bytes(self, row: int) -> int:
        """Size in bytes of a copy of a row alone."""
        room = self._room_for(self.lengths[row]) if self.grows else self.max_length
        entries = sum((room // each.ratio + 1) * each.entries[0, 0].nbytes for each in self.compressors())
        return entries + sum(tail.values[0].nbytes for tail in self.tails())

    def step(self, length: int, counts: Sequence[int] | None = None) -> CacheStep:
        """A forward pass with `length` tokens per row, of which the first `counts` are not padding; None = all.

        Raises:
            ValueError: a row would grow beyond `max_length`.
        """
        counts = [length] * self.rows if counts is None else list(counts)
        assert len(counts) == self.rows
        assert all(0 <= count <= length for count in counts)
        self._check_room(counts)
        self.reserve(max(before + count for before, count in zip(self.lengths, counts, strict=True)))
        self._touched = max(self._touched, max(self.lengths) + length)
        return CacheStep(self, length, counts)

    @torch.no_grad()
    def rollback(self, tokens: int | Sequence[int]) -> None:
        """Remove the last `tokens` of every row, or of each row by a list.

        Raises:
            ValueError: a row is shorter, or they are more than can be taken back.
        """
        back = [tokens] * self.rows if isinstance(tokens, int) else list(tokens)
        assert len(back) == self.rows
        for row, (count, room) in enumerate(zip(back, self._back, strict=True)):
            if not 0 <= count <= room:
                raise ValueError(
                    f"row {row} of the cache can go back by 0 to {room} tokens now, not {count}; it holds "
                    f"{self.lengths[row]} and is made for rollback={self.max_rollback}"
                )
        self.lengths = [length - count for length, count in zip(self.lengths, back, strict=True)]
        self._back = [room - count for room, count in zip(self._back, back, strict=True)]
        if len(set(back)) == 1 and back[0] <= self.used:
            self.used -= back[0]
            return
        for tail in self.tails():
            tail.values[:, : tail.keep] = run_of(tail.values, [self.used - count for count in back], tail.keep)
        self.used = 0

    @torch.no_grad()
    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Empty some rows, or all."""
        for row in range(self.rows) if rows is None else rows:
            for tail in self.tails():
                tail.values[row] = 0
            for each in self.compressors():
                each.written(self._touched)[row] = each.entries[row, each.most] = 0
            self.lengths[row] = self._back[row] = 0
        if rows is None:
            self.used = 0

    def select(self, rows: Sequence[int], ahead: int = 0) -> "KVCache":
        """A new cache with copies of these rows, in this order; a row may occur several times. See `gather`."""
        return KVCache.gather([(self, rows)], ahead)

    @classmethod
    @torch.no_grad()
    def gather(cls, parts: Sequence[tuple["KVCache", Sequence[int]]], ahead: int = 0) -> "KVCache":
        """A new cache with copies of rows of several, which were made for the same model and `max_length`.

        One that grows has the capacity of its longest row and `ahead` more tokens.
        """
        first = parts[0][0]
        caches = [cache for cache, _ in parts]
        assert all((x.max_length, x.max_rollback) == (first.max_length, first.max_rollback) for x in caches)
        lengths = [cache.lengths[row] for cache, rows in parts for row in rows]
        room = first._room_for(max(lengths) + ahead) if first.grows else first.max_length
        layers = {}
        with torch.inference_mode(False):
            for layer in first.layers:
                copied = [CacheRows(x.layers[layer], list(rows), x.used, x._touched) for x, rows in parts]
                layers[layer] = gathered(copied, room)
        made = cls(layers, len(lengths), first.max_length, first.max_rollback, first.grows, room)
        made._touched = min(max(x._touched for x in caches), room)
        made.lengths = lengths
        made._back = [cache._back[row] for cache, rows in parts for row in rows]
        return made

    def advance(self, step: CacheStep) -> None:
        """Add the tokens of a finished step to the lengths."""
        for tail, values in step.kept:
            tail.values[:, : tail.keep] = values
        self.used = 0 if step.kept else self.used + step.length
        self.count(step.counts)

    def count(self, counts: Sequence[int]) -> None:
        """Add tokens to the lengths, of which this cache or a static one has the values."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        room = [room + count for room, count in zip(self._back, counts, strict=True)]
        self._back = [min(each, self.max_rollback) for each in room]

    def begin_tails(self, tokens: int) -> None:
        """Let tails be written from the start of their buffers, and entries up to that many tokens."""
        self.used = 0
        self._touched = max(self._touched, tokens)

    def make_room(self, count: int) -> None:
        """Grow, if it is needed, for `count` more tokens of each row.

        Raises:
            ValueError: a row would grow beyond `max_length`.
        """
        self._check_room([count] * self.rows)
        self.reserve(max(self.lengths) + count)

    def _check_room(self, counts: Sequence[int]) -> None:
        for row, (before, count) in enumerate(zip(self.lengths, counts, strict=True)):
            if before + count > self.max_length:
                raise ValueError(
                    f"row {row} of the cache holds {before} tokens; {count} more are too many for its max_length "
                    f"{self.max_length}"
                )

    @torch.no_grad()
    def reserve(self, tokens: int) -> None:
        """Grow the buffers of entries, if it is needed, to the capacity of that many tokens.

        Raises:
            RuntimeError: there is no memory; the cache is as it was.
        """
        if tokens <= self.room:
            return
        room = self._room_for(tokens)
        with torch.inference_mode(False):
            self.layers = {layer: grown(kept, self._touched, room) for layer, kept in self.layers.items()}
        self.room = room

    def _room_for(self, tokens: int) -> int:
        return grown_room(tokens, self.max_length)


def grown_room(tokens: int, max_length: int) -> int:
    """The capacity in tokens of a growing cache that holds so many."""
    return min(max(FIRST_ROOM, 1 << (tokens - 1).bit_length()), max_length)
