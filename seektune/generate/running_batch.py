"""Sequences that are decoded together: how each samples its next tokens, and their KV caches.

Shapes: T tokens, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from seektune.generate.request import Drafts, Request, Token
from seektune.generate.sampling import Sampler
from seektune.model.kv_cache.cache import KVCache


@dataclass
class RunningSequence:
    """A sequence that has not ended."""

    index: int
    request: Request
    sampler: Sampler
    left: int
    last: int = -1
    """The last token, which is not in the cache yet."""
    draft: int = -1
    drafted_V: Tensor | None = field(default=None, repr=False)
    """The distribution of the draft; None without a draft."""

    @classmethod
    def of(cls, index: int, request: Request) -> "RunningSequence":
        """A sequence of its prompt alone."""
        sampler = Sampler(request.sampling, request.seed, request.prompt)
        return cls(index, request, sampler, request.max_new_tokens)

    def take(self, logits_TV: Tensor, drafts: Drafts) -> list[Token]:
        """Sample the next tokens, after verifying the draft.

        Raises:
            ArithmeticError: the logits are NaN.
        """
        target_V = self.sampler.distribution(logits_TV[0])
        if self.drafted_V is None:
            return [self._append(self.sampler.draw(target_V), logits_TV[0])]
        draft = self.draft
        drafted_V = self.drafted_V
        self.drafted_V = None
        drafts.made += 1
        if not self.sampler.accepts(draft, target_V, drafted_V):
            return [self._append(self.sampler.draw((target_V - drafted_V).clamp(min=0)), logits_TV[0])]
        drafts.accepted += 1
        tokens = [self._append(draft, logits_TV[0])]
        if tokens[0].end is None:
            next_one = self.sampler.draw(self.sampler.distribution(logits_TV[1]))
            tokens.append(self._append(next_one, logits_TV[1]))
        return tokens

    def _append(self, token: int, logits_V: Tensor) -> Token:
        log_V = logits_V.log_softmax(dim=0)
        logprob = float(log_V[token])
        if math.isnan(logprob):
            raise ArithmeticError("the model's logits are NaN; its weights may be damaged")
        self.sampler.observe(token)
        self.last = token
        self.left = self.left - 1
        alternatives = self._alternatives(log_V) if self.request.alternatives else []
        end = "stop" if token in self.request.stop_ids else "length" if self.left == 0 else None
        return Token(self.index, token, logprob, alternatives, end)

    def _alternatives(self, log_V: Tensor) -> list[tuple[int, float]]:
        best = log_V.topk(min(self.request.alternatives, len(log_V)))
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


@dataclass
class RunningBatch:
    """The running sequences and their KV caches."""

    rows: list[RunningSequence]
    cache: KVCache
    draft_cache: KVCache | None
    """Of the MTP block; None without speculative decoding."""

    def keep(self, lasting: Sequence[bool]) -> list[int]:
        """Keep the rows marked True and free the others' memory; returns the indices of the kept rows."""
        places = [i for i, last in enumerate(lasting) if last]
        if len(places) < len(self.rows):
            self.rows = [self.rows[i] for i in places]
            if places:
                self.cache = self.cache.select(places)
                self.draft_cache = self.draft_cache and self.draft_cache.select(places)
        return places

    def join(self, others: "RunningBatch") -> None:
        """Append the rows of another batch."""
        ours = range(len(self.rows))
        theirs = range(len(others.rows))
        self.cache = KVCache.gather([(self.cache, ours), (others.cache, theirs)])
        if self.draft_cache is not None and others.draft_cache is not None:
            self.draft_cache = KVCache.gather([(self.draft_cache, ours), (others.draft_cache, theirs)])
        self.rows = [*self.rows, *others.rows]
