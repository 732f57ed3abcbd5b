"""Decides what the ranks of a decode engine do: admits, places and retires sequences."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from seektune.generate.plan import Admission, StepPlan, StepReport
from seektune.generate.request import Request, Token


@dataclass
class SequenceGroup:
    """Sequences that step together, and what their next plan says of them."""

    running: dict[int, Admission] = field(default_factory=dict)
    retired: list[int] = field(default_factory=list)
    sampled: list[Token] = field(default_factory=list)
    decode: bool = False
    prefill: bool = False


class Controller:
    """Makes the plan of each step from the requests and from what the ranks reported of the step before.

    A sequence is placed on the rank with the fewest tokens held: cache that its sequences take at most.
    """

    def __init__(self, ranks: int, max_num_seqs: int | None = None, stages: int = 1):
        """From the ranks of a pipeline stage, and the number of stages.

        `max_num_seqs` is the maximum number of sequences that run at the same time; None = all.
        """
        self._held = [0] * ranks
        self._limit = max_num_seqs
        self._count = 0
        self._waiting: dict[int, Request] = {}
        self._running: dict[int, SequenceGroup] = {}
        self._groups = [SequenceGroup() for _ in range(stages)]
        self._steps = 0
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
        self._running[number].retired.append(number)
        self._free(number)
        return True

    def plan(self) -> StepPlan:
        """The next step, which is that of the next group."""
        group = self._next_group()
        decode = group.decode and bool(group.running)
        prefill = group.prefill and bool(group.running)
        admitted = self._admit(group)
        number = self._steps % len(self._groups)
        plan = StepPlan(admitted, group.retired, decode, prefill or bool(admitted), number, group.sampled)
        group.retired = []
        group.sampled = []
        self._steps += 1
        return plan

    def record(self, reports: Sequence[StepReport]) -> list[Token]:
        """Take the reports of a step, by rank; returns its tokens.

        Raises:
            ArithmeticError: a rank's logits are NaN.
            RuntimeError: a rank could not sample, for example out of memory.
        """
        group = self._next_group()  # the last stage has finished the plan of the group whose turn it is next
        group.decode = any(report.running for report in reports)
        group.prefill = any(report.prefilling for report in reports)
        self.cache_bytes = sum(report.cache_bytes for report in reports)
        for error in (report.error for report in reports if report.error is not None):
            raise error
        found = [token for report in reports for token in report.tokens]
        if len(self._groups) > 1:
            group.sampled = [replace(token, alternatives=[], prompt=()) for token in found]
        # a request that was retired meanwhile has ended
        tokens = [token for token in found if token.request in self._running]
        for token in tokens:
            if token.end is not None:
                self._free(token.request)
        return tokens

    def _next_group(self) -> SequenceGroup:
        return self._groups[self._steps % len(self._groups)]

    def _admit(self, group: SequenceGroup) -> list[Admission]:
        """Place the first of the waiting requests for which there is room, as many as make the groups equal."""
        room = len(self._waiting) if self._limit is None else self._limit - len(self._running)
        total = len(self._running) + min(len(self._waiting), room)
        share = -(-total // len(self._groups)) - len(group.running)
        numbers = list(self._waiting)[: max(min(room, share), 0)]
        requests = {number: self._waiting.pop(number) for number in numbers}
        # the longest first, so that the shorter ones even out what those leave
        for number in sorted(numbers, key=lambda number: requests[number].longest, reverse=True):
            rank = self._held.index(min(self._held))
            self._held[rank] += requests[number].longest
            group.running[number] = Admission(rank, number, requests[number])
            self._running[number] = group
        return [group.running[number] for number in numbers]

    def _free(self, number: int) -> None:
        admission = self._running.pop(number).running.pop(number)
        self._held[admission.rank] -= admission.request.longest
