"""Texts that grow in step with each other: how each takes its next tokens, and what the model keeps of all.

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
    """A text that still grows."""

    index: int
    request: Request
    chooser: Sampler
    left: int
    last: int = -1
    """Its newest token, which no forward has read."""
    draft: int = -1
    drafted_V: Tensor | None = field(default=None, repr=False)
    """What the draft was drawn from; None where there is none."""

    @classmethod
    def of(cls, index: int, request: Request) -> "RunningSequence":
        """A text that is still its prompt."""
        chooser = Sampler(request.sampling, request.seed, request.prompt)
        return cls(index, request, chooser, request.max_new_tokens)

    def take(self, logits_TV: Tensor, drafts: Drafts) -> list[Token]:
        """The tokens that it grows by.

        Raises:
            ArithmeticError: the logits are not numbers.
        """
        wanted_V = self.chooser.distribution(logits_TV[0])
        if self.drafted_V is None:
            return [self._append(self.chooser.draw(wanted_V), logits_TV[0])]
        draft = self.draft
        drafted_V = self.drafted_V
        self.drafted_V = None
        drafts.made += 1
        if not self.chooser.accepts(draft, wanted_V, drafted_V):
            return [self._append(self.chooser.draw((wanted_V - drafted_V).clamp(min=0)), logits_TV[0])]
        drafts.accepted += 1
        tokens = [self._append(draft, logits_TV[0])]
        if tokens[0].end is None:
            next_one = self.chooser.draw(self.chooser.distribution(logits_TV[1]))
            tokens.append(self._append(next_one, logits_TV[1]))
        return tokens

    def _append(self, token: int, logits_V: Tensor) -> Token:
        log_V = logits_V.log_softmax(dim=0)
        logprob = float(log_V[token])
        if math.isnan(logprob):
            raise ArithmeticError("the model's logits are not numbers; its weights may be damaged")
        self.chooser.note(token)
        self.last = token
        self.left = self.left - 1
        best = log_V.topk(min(self.request.alternatives, len(log_V)))
        alternatives = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        end = "stop" if token in self.request.stop_ids else "length" if self.left == 0 else None
        return Token(self.index, token, logprob, alternatives, end)


@dataclass
class RunningBatch:
    """Rows, and what the model keeps of them."""

    rows: list[RunningSequence]
    cache: KVCache
    ahead: KVCache | None
    """The MTP block's; None where nothing is drafted."""

    def keep(self, lasting: Sequence[bool]) -> list[int]:
        """Forget the other rows and free their memory; returns the places of those that stay."""
        places = [i for i, last in enumerate(lasting) if last]
        if len(places) < len(self.rows):
            self.rows = [self.rows[i] for i in places]
            if places:
                self.cache = self.cache.select(places)
                self.ahead = self.ahead and self.ahead.select(places)
        return places

    def join(self, others: "RunningBatch") -> None:
        """Take up other rows, after these."""
        ours = range(len(self.rows))
        theirs = range(len(others.rows))
        self.cache = KVCache.gather([(self.cache, ours), (others.cache, theirs)])
        if self.ahead is not None and others.ahead is not None:
            self.ahead = KVCache.gather([(self.ahead, ours), (others.ahead, theirs)])
        self.rows = [*self.rows, *others.rows]
