"""Decides what the ranks of a decode engine do: admits, places and retires sequences."""

from collections.abc import Sequence

from seektune.generate.plan import Admission, StepPlan, StepReport
from seektune.generate.prefix_cache import PrefixPlaces
from seektune.generate.request import Request, Token


class Controller:
    """Makes the plan of each step from the requests and from what the ranks reported of the step before.

    A sequence is placed on the rank with the fewest tokens held: cache that its sequences take at most.
    """

    def __init__(self, ranks: int, max_num_seqs: int | None = None, places: PrefixPlaces | None = None):
        """`max_num_seqs` is the maximum number of sequences that run at the same time; None = all.

        With `places`, tokens that a rank need not read again, as it has an earlier prompt's cache, count for it.
        """
        self._places = places
        self._held = [0] * ranks
        self._limit = max_num_seqs
        self._count = 0
        self._waiting: dict[int, Request] = {}
        self._running: dict[int, Admission] = {}
        self._retired: list[int] = []
        self._decode = False
        self._prefill = False
        self.cache_bytes = 0
        """Memory of the caches of all running sequences, after the last step."""

    @property
    def done(self) -> bool:
        """Whether every request has ended."""
        return not self._running and not self._waiting

    def add(self, requests: Sequence[Request]) -> list[int]:
        """Add requests, which wait until there is room; returns the numbers that identify them in tokens."""
        numbers = list(range(self._count, self._count + len(requests)))
        self._count += len(requests)
        self._waiting |= dict(zip(numbers, requests, strict=True))
        return numbers

    def retire(self, number: int) -> bool:
        """End a request and free its cache in the next step; returns False if it had ended."""
        if self._waiting.pop(number, None) is not None:
            return True
        if number not in self._running:
            return False
        self._free(number)
        self._retired.append(number)
        return True

    def plan(self) -> StepPlan:
        """The next step."""
        decode = self._decode and bool(self._running)
        prefill = self._prefill and bool(self._running)
        admitted = self._admit()
        plan = StepPlan(admitted, self._retired, decode, prefill or bool(admitted))
        self._retired = []
        return plan

    def record(self, reports: Sequence[StepReport]) -> list[Token]:
        """Take the reports of a step, by rank; returns its tokens.

        Raises:
            ArithmeticError: a rank's logits are NaN.
            RuntimeError: a rank could not sample, for example out of memory.
        """
        self._decode = any(report.running for report in reports)
        self._prefill = any(report.prefilling for report in reports)
        self.cache_bytes = sum(report.cache_bytes for report in reports)
        for error in (report.error for report in reports if report.error is not None):
            raise error
        tokens = [token for report in reports for token in report.tokens]
        for token in tokens:
            if token.end is not None and token.request in self._running:
                self._free(token.request)
        return tokens

    def _admit(self) -> list[Admission]:
        """Place the first of the waiting requests for which there is room."""
        room = None if self._limit is None else self._limit - len(self._running)
        numbers = list(self._waiting)[:room]
        requests = {number: self._waiting.pop(number) for number in numbers}
        # the longest first, so that the shorter ones even out what those leave
        for number in sorted(numbers, key=lambda number: requests[number].longest, reverse=True):
            rank = self._place(requests[number])
            self._held[rank] += requests[number].longest
            self._running[number] = Admission(rank, number, requests[number])
        return [self._running[number] for number in numbers]

    def _place(self, request: Request) -> int:
        saved = {} if self._places is None else self._places.saved(request.prompt)
        rank = min(range(len(self._held)), key=lambda rank: self._held[rank] - saved.get(rank, 0))
        if self._places is not None:
            self._places.record(request.prompt, rank)
        return rank

    def _free(self, number: int) -> None:
        admission = self._running.pop(number)
        self._held[admission.rank] -= admission.request.longest
