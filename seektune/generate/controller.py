"""Decides what the ranks of a decode engine do: admits, places and retires sequences."""

from collections.abc import Sequence

from seektune.generate.plan import Admission, StepPlan, StepReport
from seektune.generate.request import Request, Token


class Controller:
    """Makes the plan of each step from the requests and from what the ranks reported of the step before.

    A sequence is placed on the rank with the fewest tokens held: cache that its sequences take at most.
    """

    def __init__(self, ranks: int):
        self._held = [0] * ranks
        self._places: dict[int, Admission] = {}
        self._admitted: list[Admission] = []
        self._retired: list[int] = []
        self._count = 0
        self._decode = False
        self._prefill = False
        self.cache_bytes = 0
        """Memory of the caches of all running sequences, after the last step."""

    @property
    def done(self) -> bool:
        """Whether every request has ended."""
        return not self._places

    def admit(self, requests: Sequence[Request]) -> list[int]:
        """Place requests; returns the numbers that identify them in tokens."""
        numbers = list(range(self._count, self._count + len(requests)))
        self._count += len(requests)
        # the longest first, so that the shorter ones even out what those leave
        order = sorted(range(len(requests)), key=lambda i: requests[i].longest, reverse=True)
        placed = {i: self._place(numbers[i], requests[i]) for i in order}
        self._admitted += [placed[i] for i in range(len(requests))]
        return numbers

    def retire(self, number: int) -> bool:
        """End a request and free its cache in the next step; returns False if it had ended."""
        if number not in self._places:
            return False
        self._free(number)
        others = [each for each in self._admitted if each.number != number]
        if len(others) == len(self._admitted):  # a rank has it
            self._retired.append(number)
        self._admitted = others
        return True

    def plan(self) -> StepPlan:
        """The next step."""
        decode = self._decode and not self.done
        prefill = bool(self._admitted) or (self._prefill and not self.done)
        plan = StepPlan(self._admitted, self._retired, decode, prefill)
        self._admitted = []
        self._retired = []
        return plan

    def record(self, reports: Sequence[StepReport]) -> list[Token]:
        """Take the reports of a step, by rank; returns its tokens.

        Raises:
            ArithmeticError: a rank's logits are NaN.
        """
        self._decode = any(report.running for report in reports)
        self._prefill = any(report.prefilling for report in reports)
        self.cache_bytes = sum(report.cache_bytes for report in reports)
        for error in (report.error for report in reports if report.error is not None):
            raise ArithmeticError(error)
        tokens = [token for report in reports for token in report.tokens]
        for token in tokens:
            if token.end is not None and token.request in self._places:
                self._free(token.request)
        return tokens

    def _place(self, number: int, request: Request) -> Admission:
        rank = self._held.index(min(self._held))
        self._held[rank] += request.longest
        self._places[number] = Admission(rank, number, request)
        return self._places[number]

    def _free(self, number: int) -> None:
        admission = self._places.pop(number)
        self._held[admission.rank] -= admission.request.longest
