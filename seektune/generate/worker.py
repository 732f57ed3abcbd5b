"""The part of a decode engine on one rank: its sequences, their caches, and the forward passes of a plan.

Shapes: B rows, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch

from seektune.generate.capacity import UNLIMITED, BatchRows, CacheRoom, free_bytes, prefix_share
from seektune.generate.decodable import DecodableModel
from seektune.generate.drafter import Proposal, drafter_of
from seektune.generate.limits import CHUNK
from seektune.generate.plan import EngineOptions, StepPlan, StepReport
from seektune.generate.prefill import Prefill, padded
from seektune.generate.prefix_cache import PrefixCache
from seektune.generate.request import DraftCounts, Token
from seektune.generate.running_batch import RunningBatch, RunningSequence
from seektune.generate.static_steps import StaticSteps, make_static_steps
from seektune.generate.step_result import Continuing, ForwardResult, StepResult
from seektune.kernels import cpu_decode_kernels


class DecodeWorker:
    """The sequences of one rank. All ranks run the same forward passes of a plan, with or without sequences."""

    def __init__(self, model: DecodableModel, options: EngineOptions, rank: int = 0, measured: CacheRoom | None = None):
        """`measured` is the memory for caches if an earlier engine of the model has measured it."""
        self._model = model
        self._options = options
        self._rank = rank
        self._drafter = drafter_of(model) if options.speculative else None
        self.room = measured or self._measured()
        """The memory for caches, before the first step."""
        kept = options.prefix_bytes if options.memory is None else self.room.prefixes
        self._prefixes = PrefixCache(kept) if kept else None
        compiled = options.cpu_kernels and model.device.type == "cpu" and model.dtype == torch.float32
        self._kernels = cpu_decode_kernels if compiled else nullcontext
        self._static: StaticSteps | None = make_static_steps(model, options)
        self._waiting: list[RunningSequence] = []
        self._reading: Prefill | None = None
        self._texts: RunningBatch | None = None

    def _measured(self) -> CacheRoom:
        options = self._options
        if options.memory is None:
            return UNLIMITED
        size = self._model.cache_size(options.longest, options.speculative)
        ahead = 0 if self._drafter is None else self._drafter.size
        free = free_bytes(options.memory, self._model.device)
        prefixes = prefix_share(options.prefix_bytes, free)
        return CacheRoom(size, free - prefixes, options.longest, ahead, options.grows, prefixes, options.static_steps)

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> StepReport:
        """Run the forward passes of a plan, sample, and draft.

        Other ranks wait in the passes, so an error outside of them is reported and not raised.
        """
        found = StepResult()
        self._finish(plan, *self._run(plan, found), found)
        return self._report(found)

    def _run(self, plan: StepPlan, found: StepResult) -> tuple[ForwardResult | None, Prefill | None]:
        """The forward passes of a plan: of the running sequences, and of prompts; after an error without tokens."""
        with found.catching():
            self._prepare(plan)
        if found.error is not None:  # the engine is dropped after this step
            self._waiting = []
            self._reading = None
            self._texts = None
        with self._kernels():
            decoded = self._decode() if plan.decode else None
        return decoded, self._prefill() if plan.prefill else None

    def _prepare(self, plan: StepPlan) -> None:
        """Drop and add sequences, and allocate the caches of prompts."""
        for number in plan.retired:
            self._retire(number)
        here = [each for each in plan.admitted if each.rank == self._rank]
        self._waiting += [RunningSequence.of(each.number, each.request) for each in here]
        if here:
            self._make_room()
        if plan.prefill and self._reading is None and self._waiting:
            options = self._options.longest, self._options.grows, self._drafter, CHUNK
            self._reading = Prefill(self._model, self._waiting, *options, self._prefixes)
            self._waiting = []
        if plan.decode and self._static is not None and self._texts is not None:
            self._static.prepare(self._texts.cache)

    def _make_room(self) -> None:
        """Free the buffers of static steps, if they are larger than what is left beside new sequences."""
        if self._static is None:
            return
        reading = [] if self._reading is None else self._reading.rows
        running = [] if self._texts is None else self._texts.rows
        rows = [*running, *reading, *self._waiting]
        batch = BatchRows(len(rows), max(row.request.longest for row in rows))
        if self._static.nbytes > self.room.static_bytes(batch) + max(self.room.left([batch]), 0):
            self._static.drop()

    def _finish(self, plan: StepPlan, decoded: ForwardResult | None, read: Prefill | None, found: StepResult) -> None:
        """Sample and draft after the forward passes of a plan."""
        if plan.decode:
            with self._kernels():
                self._continue(lambda: decoded, found)
        if plan.prefill:
            self._continue(lambda: self._scored(read), found)

    def _report(self, found: StepResult) -> StepReport:
        prefilling = self._reading is not None or bool(self._waiting)
        running = 0 if self._texts is None else len(self._texts.rows)
        held = 0 if self._texts is None else self._texts.cache.nbytes()
        held += 0 if self._static is None else self._static.nbytes
        return StepReport(found.tokens, running, prefilling, held, found.error, found.drafts)

    def _decode(self) -> ForwardResult | None:
        """The forward pass of the running sequences; None without any."""
        texts = self._texts
        if texts is None:
            self._model.advance_empty()
            return None
        tokens = [[row.last, *(draft.token for draft in row.drafts)] for row in texts.rows]
        ids, _ = padded(tokens, self._model)
        if self._static is not None:
            return ForwardResult(texts, self._static.advance(ids, texts.cache), None)
        if self._drafter is None:
            return ForwardResult(texts, self._model.advance(ids, texts.cache), None)
        return ForwardResult(texts, *self._drafter.advance(ids, texts.cache, None))

    def _prefill(self) -> Prefill | None:
        """The forward pass of a chunk of prompts; the prefill if it was the last chunk."""
        reading = self._reading
        if reading is None:
            self._model.advance_empty()
            if self._drafter is not None:
                self._drafter.read_empty()
            return None
        reading.advance()
        return reading

    def _scored(self, read: Prefill | None) -> ForwardResult | None:
        """The prompts of a prefill whose last chunk has been read."""
        if read is None or not read.score():
            return None
        self._reading = None
        return ForwardResult(*read.texts())

    def _continue(self, result: Callable[[], ForwardResult | None], found: StepResult) -> None:
        """Sample the next tokens after a forward pass, and draft; without rows, take part in the drafter's pass."""
        rows: Continuing | None = None
        with found.catching():
            after = result()
            rows = None if after is None else self._grow(after, found)
        proposal = self._propose(rows)
        if rows is None:
            return
        with found.catching():
            if proposal is not None:
                drafts = proposal.draw([row.sampler for row in rows.texts.rows])
                for row, own in zip(rows.texts.rows, drafts, strict=True):
                    row.drafts = own
            if self._texts is None:
                self._texts = rows.texts
            elif self._texts is not rows.texts:
                self._write_back()
                self._texts.join(rows.texts)

    def _grow(self, after: ForwardResult, found: StepResult) -> Continuing | None:
        """Sample each row's next tokens; returns the rows that have not ended, if there are any."""
        texts = after.texts
        read = after.streams.shape[1]
        counts = [DraftCounts() for _ in texts.rows]
        taken = self._take(after, counts)
        if self._options.memory is not None:
            self._reserve(texts, taken)
        found.tokens += [token for tokens in taken for token in tokens]
        found.drafts |= {row.index: own for row, own in zip(texts.rows, counts, strict=True) if own.made}
        lasting = [tokens[-1].end is None for tokens in taken]
        # ended rows are dropped below and need no rollback
        texts.cache.rollback([(read - len(tokens)) * last for tokens, last in zip(taken, lasting, strict=True)])
        places = self._keep(texts, lasting)
        features = None if after.features is None else after.features[places]
        return Continuing(texts, features, [[token.id for token in taken[i]] for i in places]) if places else None

    def _reserve(self, texts: RunningBatch, taken: list[list[Token]]) -> None:
        """Let the caches grow for the next step; while there is no memory, the longest sequence ends with `memory`."""
        needed = [length + texts.ahead for length in texts.cache.lengths]
        lasting = {row: needed[row] for row, tokens in enumerate(taken) if tokens[-1].end is None}
        while lasting:
            longest = max(lasting, key=lambda row: lasting[row])
            try:
                return texts.reserve(lasting[longest])
            except (MemoryError, RuntimeError):
                taken[longest][-1] = replace(taken[longest][-1], end="memory")
                del lasting[longest]

    def _take(self, after: ForwardResult, counts: Sequence[DraftCounts]) -> list[list[Token]]:
        """The next tokens of each row; `counts` receive how many drafts were accepted."""
        logits_BTV = self._model.logits(self._model.hidden(after.streams))
        each = zip(after.texts.rows, logits_BTV, counts, strict=True)
        return [row.take(logits_TV, own) for row, logits_TV, own in each]

    def _propose(self, rows: Continuing | None) -> Proposal | None:
        """Let the drafter read each row's new tokens and compute what follows."""
        if self._drafter is None:
            return None
        if rows is None:
            self._drafter.propose_empty()
            return None
        assert rows.features is not None, "the drafter's features are kept"
        assert rows.texts.draft_cache is not None, "rows that are drafted for have a cache of the drafter"
        after_BT, counts = padded(rows.taken, self._model)
        return self._drafter.propose(rows.features[:, : after_BT.shape[1]], after_BT, rows.texts.draft_cache, counts)

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
        if not all(lasting) and texts is self._texts:
            self._write_back()
        if self._prefixes is not None:
            for row in (i for i, last in enumerate(lasting) if not last):
                texts.store(row, self._prefixes)
        places = texts.keep(lasting)
        if not places and texts is self._texts:
            self._texts = None
        return places

    def _write_back(self) -> None:
        """Bring the caches of the running sequences up to date, which static steps do not write."""
        if self._static is not None:
            self._static.write_back()
