"""Decides what the ranks of a decode engine do: admits, places and retires sequences."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TypeAlias

from seektune.generate.capacity import BatchRows, CacheRoom
from seektune.generate.plan import Admission, StepPlan, StepReport
from seektune.generate.prefix_cache import PrefixPlaces
from seektune.generate.request import DraftCounts, Request, Token
from seektune.generate.sequence_group import SequenceGroup
from seektune.io.console import size

Saved: TypeAlias = Callable[[int], Mapping[int, int]]


class Controller:
    """Makes the plan of each step from the requests and from what the ranks reported of the step before.

    A sequence is placed on the rank with most free cache. While it does not fit, it and those behind it wait.
    """

    def __init__(
        self,
        rooms: Sequence[CacheRoom],
        max_num_seqs: int | None = None,
        stages: int = 1,
        prefixes: PrefixPlaces | None = None,
    ):
        """From the memory of all ranks for caches, in order, and the number of pipeline stages on which these are.

        `max_num_seqs` is the maximum number of sequences that run at the same time; None = all. With `prefixes`, the
        share of a sequence that a rank need not read again, as it has an earlier prompt's cache, counts as free there.
        """
        ranks = len(rooms) // stages
        self._rooms = [rooms[rank::ranks] for rank in range(ranks)]
        """Of the ranks that hold parts of the same sequences."""
        self._prefixes = prefixes
        self._limit = max_num_seqs
        self._count = 0
        self._waiting: dict[int, Request] = {}
        self._running: dict[int, SequenceGroup] = {}
        self._groups = [SequenceGroup() for _ in range(stages)]
        self._steps = 0
        self.drafts = DraftCounts()
        """Counts of all verified drafts."""
        self.cache_bytes = 0
        """Memory of the caches of all running sequences, after the last step."""

    @property
    def done(self) -> bool:
        """Whether every request has ended."""
        return not self._running and not self._waiting

    def add(self, requests: Sequence[Request]) -> list[int]:
        """Add requests, which wait until there is room; returns the numbers that identify them in tokens.

        Raises:
            ValueError: one can never fit; then none is added.
        """
        for request in requests:
            self._check(request)
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
            RuntimeError: a rank could not sample or draft, for example out of memory.
        """
        group = self._next_group()  # the last stage has finished the plan of the group whose turn it is next
        group.decode = any(report.running for report in reports)
        group.prefill = any(report.prefilling for report in reports)
        self.cache_bytes = sum(report.cache_bytes for report in reports)
        for number, counts in (each for report in reports for each in report.drafts.items()):
            self._count_drafts(number, counts)
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

    def _check(self, request: Request) -> None:
        alone = [BatchRows().joined_by(request.longest)]
        if all(self._left(rank, alone) < 0 for rank in range(len(self._rooms))):
            lacking = [min(rooms, key=lambda room: room.left(alone)) for rooms in self._rooms]
            raise ValueError(_too_little(request, max(lacking, key=lambda room: room.left(alone)), alone))

    def _admit(self, group: SequenceGroup) -> list[Admission]:
        """Place the first of the waiting requests for which there is room, as many as make the groups equal."""
        room = len(self._waiting) if self._limit is None else self._limit - len(self._running)
        total = len(self._running) + min(len(self._waiting), room)
        share = -(-total // len(self._groups)) - len(group.running)
        first = list(self._waiting)[: max(min(room, share), 0)]
        saved = cache(self._saved)
        lasts = range(len(first))
        count = bisect_left(lasts, True, key=lambda last: self._places(first[: last + 1], group, saved) is None)
        places = self._places(first[:count], group, saved) or {}
        for number in first[:count]:
            group.running[number] = Admission(places[number], number, self._waiting.pop(number))
            self._running[number] = group
            if self._prefixes is not None:
                self._prefixes.record(group.running[number].request.prompt, places[number])
        return [group.running[number] for number in first[:count]]

    def _places(self, numbers: Sequence[int], group: SequenceGroup, saved: Saved) -> dict[int, int] | None:
        """The rank of each of the waiting requests if they join a group together; None if they do not all fit."""
        batches = [[each.batch_on(rank) for each in self._groups] for rank in range(len(self._rooms))]
        joined = self._groups.index(group)
        places = {}
        # the longest first, so that the shorter ones even out what those leave
        for number in sorted(numbers, key=lambda number: self._waiting[number].longest, reverse=True):
            rank = self._place(self._waiting[number], batches, joined, saved(number))
            if rank is None:
                return None
            batches[rank][joined] = batches[rank][joined].joined_by(self._waiting[number].longest)
            places[number] = rank
        return places

    def _saved(self, number: int) -> Mapping[int, int]:
        """Tokens of a waiting request's prompt that ranks need not read again, by rank."""
        return {} if self._prefixes is None else self._prefixes.saved(self._waiting[number].prompt)

    def _place(
        self, request: Request, batches: Sequence[Sequence[BatchRows]], joined: int, saved: Mapping[int, int]
    ) -> int | None:
        """The rank on which a request joins one of the batches; None if it does not fit."""

        def free(rank: int) -> float:
            room = self._rooms[rank][0]
            own = room.free - room.left([BatchRows().joined_by(request.longest)])
            return self._left(rank, batches[rank]) + own * saved.get(rank, 0) / request.longest

        for rank in sorted(range(len(self._rooms)), key=free, reverse=True):
            after = list(batches[rank])
            after[joined] = after[joined].joined_by(request.longest)
            if self._left(rank, after) >= 0:
                return rank
        return None

    def _left(self, rank: int, batches: Sequence[BatchRows]) -> int:
        """Bytes left for caches beside these batches, on the pipeline stage that has least."""
        return min(room.left(batches) for room in self._rooms[rank])

    def _count_drafts(self, number: int, counts: DraftCounts) -> None:
        self.drafts.add(counts)
        own = self._running[number].running[number].request.drafts if number in self._running else None
        if own is not None:
            own.add(counts)

    def _free(self, number: int) -> None:
        self._running.pop(number).running.pop(number)


def _too_little(request: Request, room: CacheRoom, alone: Sequence[BatchRows]) -> str:
    """Why a request cannot fit into the memory of a rank."""
    beside = advice = ""
    copies = "its copies" if room.static_steps else "a copy of it"
    if room.prefixes:
        beside = f" and a prefix cache of {size(room.prefixes)}"
        advice = ", or give the prefix cache less (--prefix-cache-gb)"
    return (
        f"a sequence of up to {request.longest:,} tokens needs {size(room.free - room.left(alone))} for its KV cache "
        f"and {copies}, but {size(room.free)} are free beside the weights{beside}; shorten the prompt or lower its "
        f"maximum number of new tokens{advice}"
    )
