"""Decodes several requests together (continuous batching), with optional speculative decoding.

Shapes: B rows, T tokens, S streams, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from seektune.generate.decodable import DecodableModel
from seektune.generate.drafter import Drafter, drafter_of
from seektune.generate.prefill import Prefill, padded
from seektune.generate.request import DraftCounts, Request, Token
from seektune.generate.running_batch import RunningBatch, RunningSequence
from seektune.kernels import cpu_decode_kernels

CHUNK = 4096
"""Tokens of one prefill forward, over all rows."""


class DecodeEngine:
    """Decodes requests together; each gets the tokens that it would get alone.

    With `speculative` the MTP block or the DSpark stages draft tokens ahead, and the next forward verifies them; tokens
    are distributed as without drafts (greedy ones are the same).
    """

    def __init__(
        self,
        model: DecodableModel,
        requests: Sequence[Request] = (),
        speculative: bool = False,
        longest: int | None = None,
        cpu_kernels: bool = True,
    ):
        """Queue the first requests; nothing is computed yet.

        Args:
            model: to decode with.
            requests: the first requests.
            speculative: let the model's drafter propose tokens.
            longest: maximum tokens of a sequence, prompt included, if requests may join later; caches then grow with
                the sequences. None allocates them for the longest of `requests`.
            cpu_kernels: use the compiled kernels of `kernels.cpu` for fp32 on a CPU, if there is a compiler. Results
                differ in the last digits, so evaluations do not use them.

        Raises:
            ValueError: a request is invalid, or the model has no drafter.
        """
        self._drafter = drafter_of(model) if speculative else None
        if speculative and self._drafter is None:
            raise ValueError("speculative decoding needs an MTP block or DSpark stages; this model has none")
        self.drafts = DraftCounts()
        self._model = model
        compiled = cpu_kernels and model.device.type == "cpu" and model.dtype == torch.float32
        self._kernels = cpu_decode_kernels if compiled else nullcontext
        self._grows = longest is not None
        self._longest = max((each.longest for each in requests), default=0) if longest is None else longest
        self._count = 0
        self._waiting: list[RunningSequence] = []
        self._reading: Prefill | None = None
        self._texts: RunningBatch | None = None
        self.add(requests)

    @property
    def done(self) -> bool:
        """Whether every request has ended."""
        return not self._waiting and self._reading is None and self._texts is None

    def add(self, requests: Sequence[Request]) -> list[int]:
        """Add requests; returns the numbers that identify them in tokens.

        Raises:
            ValueError: one of them is invalid; then none is added.
        """
        for request in requests:
            request.check(self._model.config.vocab_size)
            if request.longest > self._longest:
                raise ValueError(f"a sequence of up to {request.longest} tokens exceeds the maximum of {self._longest}")
        numbers = list(range(self._count, self._count + len(requests)))
        self._waiting += [RunningSequence.of(i, each) for i, each in zip(numbers, requests, strict=True)]
        self._count += len(requests)
        return numbers

    def end(self, request: int) -> None:
        """Stop decoding a request."""
        self._waiting = [row for row in self._waiting if row.index != request]
        if self._reading is not None:
            self._reading.rows = [row for row in self._reading.rows if row.index != request]
            self._reading = self._reading if self._reading.rows else None
        if self._texts is not None:
            self._keep(self._texts, [row.index != request for row in self._texts.rows])

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Run one step: the next token of each running request, more if drafts are accepted; and a prefill chunk.

        Raises:
            ArithmeticError: the model's logits are NaN.
        """
        tokens = []
        if self._texts is not None:
            with self._kernels():
                tokens += self._grow(self._texts, *self._go_on(self._texts))
        if self._reading is None and self._waiting:
            options = self._longest, self._grows, self._drafter, CHUNK
            self._reading = Prefill(self._model, self._waiting, *options)
            self._waiting = []
        if self._reading is not None and self._reading.read():
            (joining, streams, features), self._reading = self._reading.texts(), None
            tokens += self._grow(joining, streams, features)
        return tokens

    def tokens(self) -> Iterator[Token]:
        """All remaining tokens."""
        while not self.done:
            yield from self.step()

    def _go_on(self, texts: RunningBatch) -> tuple[Tensor, Tensor | None]:
        """Streams `[B, T, S, D]` of each row's last token and of its drafts, and what the drafter reads of them."""
        tokens = [[row.last, *(draft.token for draft in row.drafts)] for row in texts.rows]
        ids, _ = padded(tokens, self._model)
        if self._drafter is None:
            return self._model.advance(ids, texts.cache), None
        return self._drafter.advance(ids, texts.cache, None)

    def _grow(self, texts: RunningBatch, streams: Tensor, features: Tensor | None) -> list[Token]:
        """Sample each row's next tokens; rows that have not ended stay in, or join, the running batch."""
        logits_BTV = self._model.logits(self._model.hidden(streams))
        read = streams.shape[1]
        taken = [row.take(logits_TV, self.drafts) for row, logits_TV in zip(texts.rows, logits_BTV, strict=True)]
        lasting = [tokens[-1].end is None for tokens in taken]
        # ended rows are dropped below and need no rollback
        texts.cache.rollback([(read - len(tokens)) * last for tokens, last in zip(taken, lasting, strict=True)])
        places = self._keep(texts, lasting)
        if self._drafter is not None and features is not None and places:
            self._propose(self._drafter, texts, features[places], [[token.id for token in taken[i]] for i in places])
        if self._texts is None and places:
            self._texts = texts
        elif self._texts is not None and self._texts is not texts and places:
            self._texts.join(texts)
        return [token for tokens in taken for token in tokens]

    def _propose(self, drafter: Drafter, texts: RunningBatch, features: Tensor, taken: list[list[int]]) -> None:
        """Let the drafter read each row's new tokens and propose the next ones."""
        assert texts.draft_cache is not None, "rows that are drafted for have a cache of the drafter"
        after_BT, counts = padded(taken, self._model)
        samplers = [row.sampler for row in texts.rows]
        proposed = drafter.propose(features[:, : after_BT.shape[1]], after_BT, texts.draft_cache, counts, samplers)
        for row, drafts in zip(texts.rows, proposed, strict=True):
            row.drafts = drafts

    def _keep(self, texts: RunningBatch, lasting: list[bool]) -> list[int]:
        """Drop the rows that have ended; returns the indices of the others."""
        places = texts.keep(lasting)
        if not places and texts is self._texts:
            self._texts = None
        return places
