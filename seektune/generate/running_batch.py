"""Sequences that are decoded together: how each samples its next tokens, and their KV caches.

Shapes: T tokens, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from seektune.generate.drafter import Draft
from seektune.generate.prefix_cache import PrefixCache
from seektune.generate.request import DraftCounts, Request, Token
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
    drafts: list[Draft] = field(default_factory=list, repr=False)
    """Proposals for the next tokens."""
    prompt: tuple[Token, ...] = ()
    """The scored tokens of the prompt, until the first token is sampled."""
    cached: int = 0
    """Tokens of the prompt that were in the prefix cache, until the first token is sampled."""
    generated: list[int] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, index: int, request: Request) -> "RunningSequence":
        """A sequence of its prompt alone."""
        grammar = None if request.grammar is None else request.grammar.start()
        sampler = Sampler(request.sampling, request.seed, request.prompt, grammar)
        return cls(index, request, sampler, request.max_new_tokens)

    def take(self, logits_TV: Tensor, counts: DraftCounts) -> list[Token]:
        """Sample the next tokens, after verifying the drafts one by one; `counts` receives how many were accepted.

        Raises:
            ArithmeticError: the logits are NaN.
        """
        proposed = self.drafts
        self.drafts = []
        tokens: list[Token] = []
        for slot, draft in enumerate(proposed):
            target_V = self.sampler.distribution(logits_TV[slot])
            accepted = self.sampler.accepts(draft.token, target_V, draft.drafted_V)
            counts.record(slot, accepted)
            if not accepted:
                rest_V = (target_V - draft.drafted_V).clamp(min=0)
                return [*tokens, self._append(self.sampler.draw(rest_V), logits_TV[slot])]
            tokens.append(self._append(draft.token, logits_TV[slot]))
            if tokens[-1].end is not None:
                return tokens
        last_V = logits_TV[len(proposed)]
        return [*tokens, self._append(self.sampler.draw(self.sampler.distribution(last_V)), last_V)]

    def _append(self, token: int, logits_V: Tensor) -> Token:
        found = self.scored(token, logits_V)
        self.sampler.observe(token)
        self.last = token
        self.generated.append(token)
        self.left = self.left - 1
        end = self._end(token)
        prompt = self.prompt
        cached = self.cached
        self.prompt = ()
        self.cached = 0
        return replace(found, end=end, prompt=prompt, cached=cached)

    def _end(self, token: int) -> str | None:
        if self.sampler.grammar is not None and self.sampler.grammar.failed:
            return "error"
        return "stop" if token in self.request.stop_ids else "length" if self.left == 0 else None

    def scored(self, token: int, logits_V: Tensor) -> Token:
        """A token with its log-probability and the most likely ones.

        Raises:
            ArithmeticError: the logits are NaN.
        """
        # in fp64: torch's fp32 sum loses unlikely tokens beside a likely one, 2e-6 of its log-probability
        log_V = (logits_V.double() / self.request.logprob_temperature).log_softmax(dim=0)
        logprob = float(log_V[token])
        if math.isnan(logprob):
            raise ArithmeticError("the model's logits are NaN; its weights may be damaged")
        best = log_V.topk(min(self.request.alternatives, len(log_V)))
        return Token(
            self.index, token, logprob, list(zip(best.indices.tolist(), best.values.tolist(), strict=True)), None
        )


@dataclass
class RunningBatch:
    """The running sequences and their KV caches."""

    rows: list[RunningSequence]
    cache: KVCache
    draft_cache: KVCache | None
    """Of the drafter; None without speculative decoding."""
    ahead: int = 1
    """Tokens of the next step, for which caches that are copied keep their capacity."""

    def reserve(self, tokens: int) -> None:
        """Let the caches hold rows of that many tokens, as far as they may grow.

        Raises:
            RuntimeError: memory is exhausted.
        """
        for cache in (self.cache, self.draft_cache):
            if cache is not None:
                cache.reserve(min(tokens, cache.max_length))

    def store(self, row: int, prefixes: PrefixCache) -> None:
        """Keep a row's cache for requests that begin with its tokens."""
        sequence = self.rows[row]
        tokens = [*sequence.request.prompt, *sequence.generated]
        prefixes.store(tokens[: self.cache.lengths[row]], self.cache, row)

    def keep(self, lasting: Sequence[bool]) -> list[int]:
        """Keep the rows marked True and free the others' memory; returns the indices of the kept rows."""
        places = [i for i, last in enumerate(lasting) if last]
        if places and len(places) < len(self.rows):
            self.cache = self.cache.select(places, self.ahead)
            self.draft_cache = self.draft_cache and self.draft_cache.select(places, self.ahead)
        self.rows = [self.rows[i] for i in places]
        return places

    def join(self, others: "RunningBatch") -> None:
        """Append the rows of another batch."""
        ours = range(len(self.rows))
        theirs = range(len(others.rows))
        self.cache = KVCache.gather([(self.cache, ours), (others.cache, theirs)], self.ahead)
        if self.draft_cache is not None and others.draft_cache is not None:
            self.draft_cache = KVCache.gather([(self.draft_cache, ours), (others.draft_cache, theirs)], self.ahead)
        self.rows = [*self.rows, *others.rows]
