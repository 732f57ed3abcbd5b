"""Several texts that grow together, a token or an accepted draft at a time; others may join them while they grow.

Shapes: B rows, T tokens, S streams, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from seektune.generate.decodable import DecodableModel
from seektune.generate.prefill import Prefill, padded
from seektune.generate.request import Drafts, Request, Token
from seektune.generate.running_batch import RunningBatch, RunningSequence
from seektune.kernels import cpu_decode_kernels

CHUNK = 4096
"""Tokens of all rows together that one forward of a prefill reads."""


class DecodeEngine:
    """Requests that are decoded together; each gets the text that it would get alone.

    With `speculative` the MTP block guesses one token ahead and the next forward reads the guess too; what is accepted
    is distributed as without (greedy texts are the same).
    """

    def __init__(
        self,
        model: DecodableModel,
        requests: Sequence[Request] = (),
        speculative: bool = False,
        longest: int | None = None,
        cpu_kernels: bool = True,
    ):
        """Nothing is computed yet.

        Args:
            model: that speaks.
            requests: the first.
            speculative: let the MTP block guess ahead.
            longest: tokens that any text may have, prompt included, if others may join; memory is then taken as texts
                grow. None takes it at once for the longest of `requests`.
            cpu_kernels: use the compiled kernels of `kernels.cpu` for fp32 on a CPU, if there is a compiler. Results
                differ in the last digits, so evaluations do not use them.

        Raises:
            ValueError: a request cannot be met, or the model has no MTP block to speculate with.
        """
        if speculative and model.config.num_nextn_predict_layers == 0:
            raise ValueError("speculative decoding needs an MTP block; this model has none")
        self.drafts = Drafts()
        self._model = model
        self._speculative = speculative
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
        """Whether every text has ended."""
        return not self._waiting and self._reading is None and self._texts is None

    def add(self, requests: Sequence[Request]) -> list[int]:
        """Let more requests join; returns the numbers by which their tokens are known.

        Raises:
            ValueError: one of them cannot be met; then none joins.
        """
        for request in requests:
            request.check(self._model.config.vocab_size)
            if request.longest > self._longest:
                raise ValueError(f"a text of up to {request.longest} tokens is longer than the {self._longest} allowed")
        numbers = list(range(self._count, self._count + len(requests)))
        self._waiting += [RunningSequence.of(i, each) for i, each in zip(numbers, requests, strict=True)]
        self._count += len(requests)
        return numbers

    def end(self, request: int) -> None:
        """Let no more tokens come for a request, whose reader has enough."""
        self._waiting = [row for row in self._waiting if row.index != request]
        if self._reading is not None:
            self._reading.rows = [row for row in self._reading.rows if row.index != request]
            self._reading = self._reading if self._reading.rows else None
        if self._texts is not None:
            self._keep(self._texts, [row.index != request for row in self._texts.rows])

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """The next tokens: one for each text that grows, two where a draft was right; and a chunk of new prompts read.

        Raises:
            ArithmeticError: the model gives no numbers.
        """
        tokens = []
        if self._texts is not None:
            with self._kernels():
                tokens += self._grow(self._texts, self._go_on(self._texts))
        if self._reading is None and self._waiting:
            options = self._longest, self._grows, self._speculative, CHUNK
            self._reading = Prefill(self._model, self._waiting, *options)
            self._waiting = []
        if self._reading is not None and self._reading.read():
            (joining, streams), self._reading = self._reading.texts(), None
            tokens += self._grow(joining, streams)
        return tokens

    def tokens(self) -> Iterator[Token]:
        """All that is still to come."""
        while not self.done:
            yield from self.step()

    def _go_on(self, texts: RunningBatch) -> Tensor:
        """Streams `[B, T, S, D]` of each row's newest token, and of its draft."""
        tokens = [[row.last] if row.drafted_V is None else [row.last, row.draft] for row in texts.rows]
        return self._model.advance(padded(tokens, self._model)[0], texts.cache)

    def _grow(self, texts: RunningBatch, streams: Tensor) -> list[Token]:
        """Let every row take its next tokens; those that go on are then among the texts that grow."""
        logits_BTV = self._model.logits(self._model.hidden(streams))
        read = streams.shape[1]
        taken = [row.take(logits_TV, self.drafts) for row, logits_TV in zip(texts.rows, logits_BTV, strict=True)]
        lasting = [tokens[-1].end is None for tokens in taken]
        # an ended row goes no further, however much of it is in the cache
        texts.cache.rollback([(read - len(tokens)) * last for tokens, last in zip(taken, lasting, strict=True)])
        places = self._keep(texts, lasting)
        if self._speculative and places:
            self._draft(texts, streams[places], [[token.id for token in taken[i]] for i in places])
        if self._texts is None and places:
            self._texts = texts
        elif self._texts is not None and self._texts is not texts and places:
            self._texts.join(texts)
        return [token for tokens in taken for token in tokens]

    def _draft(self, texts: RunningBatch, streams_BTSD: Tensor, taken: list[list[int]]) -> None:
        """Let the MTP block guess what follows each row's newest token."""
        assert texts.ahead is not None
        after, counts = padded(taken, self._model)
        hidden_BTD = self._model.foresee(streams_BTSD[:, : after.shape[1]], after, texts.ahead, counts)
        last_BD = torch.stack([hidden[count - 1] for hidden, count in zip(hidden_BTD, counts, strict=True)])
        for row, logits_V in zip(texts.rows, self._model.logits(last_BD), strict=True):
            row.drafted_V = row.chooser.distribution(logits_V)
            row.draft = row.chooser.draw(row.drafted_V)

    def _keep(self, texts: RunningBatch, lasting: list[bool]) -> list[int]:
        """Forget the rows that have ended; returns the places of the others."""
        places = texts.keep(lasting)
        if not places and texts is self._texts:
            self._texts = None
        return places
