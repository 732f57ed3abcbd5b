"""The part of a decode engine on one rank: its sequences, their caches, and the forward passes of a plan.

Shapes: B rows, T tokens, S streams, D width, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from seektune.generate.capacity import UNLIMITED, CacheRoom, free_bytes
from seektune.generate.decodable import DecodableModel
from seektune.generate.drafter import Drafter, drafter_of
from seektune.generate.limits import CHUNK
from seektune.generate.plan import EngineOptions, StepPlan, StepReport
from seektune.generate.prefill import Prefill, padded
from seektune.generate.prefix_cache import PrefixCache
from seektune.generate.request import DraftCounts, Token
from seektune.generate.running_batch import RunningBatch, RunningSequence
from seektune.kernels import cpu_decode_kernels


@dataclass(frozen=True)
class ForwardResult:
    """Sequences after a forward pass, from which their next tokens are sampled."""

    texts: RunningBatch
    streams: Tensor
    """`[B, T, S, D]` of each row's last token and of its drafts."""
    features: Tensor | None
    """What the drafter reads of these tokens."""


class DecodeWorker:
    """The sequences of one rank. All ranks run the same forward passes of a plan, with or without sequences."""

    def __init__(self, model: DecodableModel, options: EngineOptions, rank: int = 0):
        self._model = model
        self._options = options
        self._rank = rank
        self._drafter = drafter_of(model) if options.speculative else None
        self._prefixes = PrefixCache(options.prefix_bytes) if options.prefix_bytes else None
        compiled = options.cpu_kernels and model.device.type == "cpu" and model.dtype == torch.float32
        self._kernels = cpu_decode_kernels if compiled else nullcontext
        self.drafts = DraftCounts()
        self._waiting: list[RunningSequence] = []
        self._reading: Prefill | None = None
        self._texts: RunningBatch | None = None

    def room(self) -> CacheRoom:
        """The memory for caches, before the first step."""
        options = self._options
        if options.memory is None:
            return UNLIMITED
        size = self._model.cache_size(options.longest, options.speculative)
        ahead = 0 if self._drafter is None else self._drafter.size
        free = max(free_bytes(options.memory, self._model.device) - options.prefix_bytes, 0)
        return CacheRoom(size, free, options.longest, ahead, options.grows)

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> StepReport:
        """Run the forward passes of a plan, then sample.

        Other ranks wait in the passes, so an error in sampling, which comes after them, is reported and not raised.
        """
        passes = self._run(plan)
        try:
            return self._report(self._sample(*passes))
        except (ArithmeticError, RuntimeError) as error:  # such as out of memory
            return self._report([], error)

    def _run(self, plan: StepPlan) -> tuple[ForwardResult | None, Prefill | None]:
        """The forward passes of a plan: of the running sequences, and of prompts."""
        for number in plan.retired:
            self._retire(number)
        here = [each for each in plan.admitted if each.rank == self._rank]
        self._waiting += [RunningSequence.of(each.number, each.request) for each in here]
        with self._kernels():
            decoded = self._decode() if plan.decode else None
        return decoded, self._prefill() if plan.prefill else None

    def _report(self, tokens: Sequence[Token], error: Exception | None = None) -> StepReport:
        prefilling = self._reading is not None or bool(self._waiting)
        if self._texts is None:
            return StepReport(tokens, 0, prefilling, 0, error)
        return StepReport(tokens, len(self._texts.rows), prefilling, self._texts.cache.nbytes(), error)

    def _decode(self) -> ForwardResult | None:
        """The forward pass of the running sequences; None without any."""
        texts = self._texts
        if texts is None:
            self._model.advance_empty()
            return None
        tokens = [[row.last, *(draft.token for draft in row.drafts)] for row in texts.rows]
        ids, _ = padded(tokens, self._model)
        if self._drafter is None:
            return ForwardResult(texts, self._model.advance(ids, texts.cache), None)
        return ForwardResult(texts, *self._drafter.advance(ids, texts.cache, None))

    def _prefill(self) -> Prefill | None:
        """The forward pass of a chunk of prompts; the prefill if it was the last chunk."""
        if self._reading is None and self._waiting:
            options = self._options.longest, self._options.grows, self._drafter, CHUNK
            self._reading = Prefill(self._model, self._waiting, *options, self._prefixes)
            self._waiting = []
        reading = self._reading
        if reading is None:
            self._model.advance_empty()
            return None
        reading.advance()
        return reading

    def _sample(self, decoded: ForwardResult | None, read: Prefill | None) -> list[Token]:
        tokens: list[Token] = []
        if decoded is not None:
            with self._kernels():
                tokens += self._grow(decoded)
        if read is not None and read.score():
            self._reading = None
            tokens += self._grow(ForwardResult(*read.texts()))
        return tokens

    def _grow(self, found: ForwardResult) -> list[Token]:
        """Sample each row's next tokens; rows that have not ended stay in, or join, the running batch."""
        texts = found.texts
        taken = self._take(found)
        read = found.streams.shape[1]
        lasting = [tokens[-1].end is None for tokens in taken]
        # ended rows are dropped below and need no rollback
        texts.cache.rollback([(read - len(tokens)) * last for tokens, last in zip(taken, lasting, strict=True)])
        places = self._keep(texts, lasting)
        if self._drafter is not None and found.features is not None and places:
            after = [[token.id for token in taken[i]] for i in places]
            self._propose(self._drafter, texts, found.features[places], after)
        if self._texts is None and places:
            self._texts = texts
        elif self._texts is not None and self._texts is not texts and places:
            self._texts.join(texts)
        return [token for tokens in taken for token in tokens]

    def _take(self, found: ForwardResult) -> list[list[Token]]:
        """The next tokens of each row."""
        logits_BTV = self._model.logits(self._model.hidden(found.streams))
        rows = zip(found.texts.rows, logits_BTV, strict=True)
        return [row.take(logits_TV, self.drafts) for row, logits_TV in rows]

    def _propose(self, drafter: Drafter, texts: RunningBatch, features: Tensor, taken: list[list[int]]) -> None:
        """Let the drafter read each row's new tokens and propose the next ones."""
        assert texts.draft_cache is not None, "rows that are drafted for have a cache of the drafter"
        after_BT, counts = padded(taken, self._model)
        samplers = [row.sampler for row in texts.rows]
        proposed = drafter.propose(features[:, : after_BT.shape[1]], after_BT, texts.draft_cache, counts, samplers)
        for row, drafts in zip(texts.rows, proposed, strict=True):
            row.drafts = drafts

    def _retire(self, number: int) -> None:
        """Drop a request, wherever it is."""
        self._waiting = [row for row in self._waiting if row.index != number]
        if self._reading is not None:
            self._reading.rows = [row for row in self._reading.rows if row.index != number]
            self._reading = self._reading if self._reading.rows else None
        if self._texts is not None:
            self._keep(self._texts, [row.index != number for row in self._texts.rows])

    def _keep(self, texts: RunningBatch, lasting: list[bool]) -> list[int]:
        """Drop the rows that have ended; returns the indices of the others."""
        if self._prefixes is not None:
            for row in (i for i, last in enumerate(lasting) if not last):
                texts.store(row, self._prefixes)
        places = texts.keep(lasting)
        if not places and texts is self._texts:
            self._texts = None
        return places
