"""Prefills the prompts of several requests together, in chunks.

Shapes: B rows, T tokens, S streams, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from seektune.generate.decodable import DecodableModel
from seektune.generate.drafter import Drafter
from seektune.generate.prefix_cache import PrefixCache
from seektune.generate.request import Token
from seektune.generate.running_batch import RunningBatch, RunningSequence
from seektune.model.kv_cache.cache import KVCache

SCORED = 64
"""Tokens of a prompt whose logits are in memory at the same time."""


class Prefill:
    """The prefill of some rows; equal prompts are computed once."""

    def __init__(
        self,
        model: DecodableModel,
        rows: list[RunningSequence],
        longest: int,
        grows: bool,
        drafter: Drafter | None,
        chunk: int,
        prefixes: PrefixCache | None = None,
    ):
        """Allocate the caches; nothing is computed yet.

        Args:
            model: to prefill with.
            rows: new sequences, of prompts alone.
            longest: maximum tokens of a sequence.
            grows: whether caches grow with their rows.
            drafter: whose cache is filled, too.
            chunk: tokens of one forward, over all rows.
            prefixes: caches of earlier sequences, from which prompts that begin so continue.
        """
        self.rows = rows
        self._model = model
        self._read = 0
        self._stop = 0
        self._prompts = list(dict.fromkeys(tuple(row.request.prompt) for row in rows))
        # room for drafts and the token after them, beyond the last token
        count = len(self._prompts)
        most = longest + 1 + (0 if drafter is None else drafter.size)
        self._cache = model.new_cache(count, most, grows=grows)
        self._prefixes = prefixes
        self._shared = [0 if prefixes is None else prefixes.shared(prompt) for prompt in self._prompts]
        """Tokens of each prompt whose cache is copied for later prompts with the same prefix; 0 = no copy."""
        self._cached = [0] * count if prefixes is None else self._reuse(prefixes)
        self._rests = [prompt[cached:] for prompt, cached in zip(self._prompts, self._cached, strict=True)]
        """What is left to read of each prompt."""
        self._draft_cache = model.new_draft_cache(count, most, grows=grows) if drafter is not None else None
        # allocated now: a rank that lacked memory within a pass would leave other ranks waiting
        for cache in (each for each in (self._cache, self._draft_cache) if each is not None):
            cache.reserve(max(map(len, self._prompts)))
        self._size = max(chunk // count, 1)
        self._drafter = drafter
        self._streams: Tensor | None = None
        self._last: dict[int, Tensor] = {}
        self._features: dict[int, Tensor] = {}
        self._scored: dict[int, list[Token]] = {row.index: [] for row in rows if row.request.echo}

    def _reuse(self, prefixes: PrefixCache) -> list[int]:
        """Put cached beginnings of the prompts into the cache; returns their lengths."""
        scored = {tuple(row.request.prompt) for row in self.rows if row.request.echo}  # all of it is computed
        found = [None if prompt in scored else prefixes.find(prompt) for prompt in self._prompts]
        if any(each is not None for each in found):
            parts = [(self._cache, [i]) if each is None else (each, [0]) for i, each in enumerate(found)]
            self._cache = KVCache.gather(parts)
        return list(self._cache.lengths)

    def advance(self) -> None:
        """The forward pass of a chunk of each prompt."""
        start = self._read
        places = [shared - cached for shared, cached in zip(self._shared, self._cached, strict=True)]
        stop = min([start + self._size, *(place for place in places if place > start)])
        self._stop = stop
        chunk, counts = padded([rest[start:stop] for rest in self._rests], self._model)
        if self._drafter is None or self._draft_cache is None:
            streams = self._model.advance(chunk, self._cache, counts)
        else:
            streams, features = self._drafter.advance(chunk, self._cache, counts)
            self._features |= {i: features[i, count - 1] for i, count in enumerate(counts) if count}
            after, known = padded([prompt[start + 1 : stop + 1] for prompt in self._prompts], self._model)
            if after.shape[1]:
                self._drafter.read(features[:, : after.shape[1]], after, self._draft_cache, known)
            else:
                self._drafter.read_empty()
        self._last |= {i: streams[i, count - 1] for i, count in enumerate(counts) if count}
        self._streams = streams
        if self._prefixes is not None:
            for i in (i for i, place in enumerate(places) if place == stop):
                self._prefixes.store(self._prompts[i][: self._shared[i]], self._cache, i)

    def score(self) -> bool:
        """Score the chunk's tokens for the rows that want it; returns whether the chunk was the last.

        Raises:
            ArithmeticError: the logits are NaN.
        """
        assert self._streams is not None, "a chunk was read"
        self._score(self._streams, self._read)
        self._streams = None
        self._read = self._stop
        return self._read >= max(map(len, self._rests))

    def _score(self, streams: Tensor, start: int) -> None:
        """Score the prompt tokens that follow those of a chunk, for the rows that want them."""
        for row in (row for row in self.rows if row.request.echo):
            streams_TSD = streams[self._prompts.index(tuple(row.request.prompt))]
            following = row.request.prompt[start + 1 : start + 1 + len(streams_TSD)]
            # logits of a few tokens at a time: those of a chunk would take gigabytes
            for first in range(0, len(following), SCORED):
                hidden = self._model.hidden(streams_TSD[None, first : first + SCORED])
                logits_TV = self._model.logits(hidden)[0]
                tokens = following[first : first + SCORED]
                self._scored[row.index] += [row.scored(*each) for each in zip(tokens, logits_TV, strict=False)]

    def texts(self) -> tuple[RunningBatch, Tensor, Tensor | None]:
        """The batch, and of each prompt's last token the streams `[B, 1, S, D]` and what the drafter reads."""
        place = {prompt: i for i, prompt in enumerate(self._prompts)}
        places = [place[tuple(row.request.prompt)] for row in self.rows]
        for row, i in zip(self.rows, places, strict=True):
            row.prompt = tuple(self._scored.get(row.index, ()))
            row.cached = self._cached[i]
        if self._prefixes is not None:
            for i, prompt in enumerate(self._prompts):
                self._prefixes.store(prompt, self._cache, i)
        cache = self._cache
        ahead = self._draft_cache
        more = 1 if self._drafter is None else 1 + self._drafter.size
        if places != list(range(len(self._prompts))):
            cache = cache.select(places, more)
            ahead = ahead and ahead.select(places, more)
        last = torch.stack([self._last[i] for i in places]).unsqueeze(1)
        features = torch.stack([self._features[i] for i in places]).unsqueeze(1) if self._features else None
        return RunningBatch(self.rows, cache, ahead, more), last, features


def padded(rows: Sequence[Sequence[int]], model: DecodableModel) -> tuple[Tensor, list[int]]:
    """Ids `[B, T]`, zero-padded on the right, and the length of each row."""
    counts = [len(row) for row in rows]
    ids = [[*row, *[0] * (max(counts) - len(row))] for row in rows]
    return torch.tensor(ids, dtype=torch.int64, device=model.device), counts
