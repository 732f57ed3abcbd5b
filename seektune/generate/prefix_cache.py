"""KV caches of sequences that have ended, and of prompts, for requests that begin with the same tokens."""

import contextlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seektune.model.kv_cache.cache import KVCache

Ids = NDArray[np.int64]
WORTH_A_COPY = 64
"""Least tokens that a copy of a shared prefix saves."""
MOST_PREFIXES = 256
"""Of a prefix cache, and prompts whose places are remembered; each is compared with every new prompt."""


@dataclass(frozen=True)
class CachedPrefix:
    """Tokens and their cache, a copy of one row."""

    tokens: Ids
    cache: KVCache

    def reusable(self, prompt: Ids) -> int:
        """How many tokens of a prompt the cache can stand for, after a rollback; 0 if they part too early.

        The last token of the prompt is always computed: the next one is sampled from what it gives.
        """
        common = common_length(self.tokens, prompt[:-1])
        return common if len(self.tokens) - common <= self.cache.rollbacks[0] else 0


class PrefixCache:
    """Caches of at most `limit` bytes together; those that were not used for the longest time are dropped."""

    def __init__(self, limit: int):
        self._limit = limit
        self._kept: OrderedDict[bytes, CachedPrefix] = OrderedDict()
        self.nbytes = 0
        """Memory of all caches."""

    def store(self, tokens: Sequence[int], cache: KVCache, row: int) -> None:
        """Keep a copy of a row, whose tokens these are, where there is memory for it; others make room before."""
        ids = np.asarray(tokens, np.int64)
        key = ids.tobytes()
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        size = cache.row_bytes(row)
        if size > self._limit:
            return
        while self.nbytes + size > self._limit or len(self._kept) >= MOST_PREFIXES:
            _, dropped = self._kept.popitem(last=False)
            self.nbytes -= dropped.cache.nbytes()
        with contextlib.suppress(RuntimeError):  # out of memory
            self._kept[key] = CachedPrefix(ids, cache.select([row]))
            self.nbytes += size

    def find(self, prompt: Sequence[int]) -> KVCache | None:
        """A copy of the cache of the longest known beginning of a prompt."""
        ids = np.asarray(prompt, np.int64)
        lengths = {key: each.reusable(ids) for key, each in self._kept.items()}
        best = max(lengths, key=lambda key: lengths[key], default=b"")
        if not lengths.get(best):
            return None
        self._kept.move_to_end(best)
        copied = self._kept[best].cache.select([0])
        copied.rollback(copied.lengths[0] - lengths[best])
        return copied

    def shared(self, prompt: Sequence[int]) -> int:
        """The length of the longest prefix that a prompt shares with another text and that is worth a copy, or 0.

        A cache can be continued only where it was kept: the copy is for later prompts with the same prefix, such
        as the same system prompt.
        """
        ids = np.asarray(prompt, np.int64)
        common = max((common_length(each.tokens, ids[:-1]) for each in self._kept.values()), default=0)
        known = max((each.reusable(ids) for each in self._kept.values()), default=0)
        return common if common >= known + WORTH_A_COPY else 0


class PrefixPlaces:
    """Which rank read which prompt last, of the newest prompts."""

    def __init__(self, rollback: int):
        """A prompt that differs in its last `rollback` tokens is extended, too."""
        self._rollback = rollback
        self._prompts: OrderedDict[bytes, tuple[Ids, int]] = OrderedDict()

    def record(self, prompt: Sequence[int], rank: int) -> None:
        """Remember the place of a prompt."""
        ids = np.asarray(prompt, np.int64)
        there = [known for known, place in self._prompts.values() if place == rank]
        shared = max((common_length(known, ids[:-1]) for known in there), default=0)
        for each in [ids[:shared], ids] if shared >= WORTH_A_COPY else [ids]:
            self._prompts.pop(each.tobytes(), None)
            self._prompts[each.tobytes()] = (each, rank)
        while len(self._prompts) > MOST_PREFIXES:
            self._prompts.popitem(last=False)

    def saved(self, prompt: Sequence[int]) -> dict[int, int]:
        """By rank, how many tokens of a prompt it need not read again; ranks that save none are left out."""
        ids = np.asarray(prompt, np.int64)
        best: dict[int, int] = {}
        for known, rank in self._prompts.values():
            common = common_length(known, ids)
            if common and len(known) - common <= self._rollback:
                best[rank] = max(common, best.get(rank, 0))
        return best


def common_length(first: Ids, second: Ids) -> int:
    """Tokens with which both begin."""
    length = min(len(first), len(second))
    differing = np.flatnonzero(first[:length] != second[:length])
    return int(differing[0]) if len(differing) else length
