"""A model that is spread over ranks, brought to rank 0 a tensor at a time so that it can be written as from one.

Rank 0 asks: it broadcasts which tensor it wants, and those who hold pieces send them. A stacked expert weight is asked
for an expert at a time. Every request reaches every rank, so that nobody waits long for word.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from seektune.checkpoint.names import Shape, Slot, slots
from seektune.checkpoint.ranks import Ranks
from seektune.checkpoint.shard import Box, Shard, as_shard, box_of
from seektune.checkpoint.source import KINDS, Source
from seektune.checkpoint.stored import Stored

T = TypeVar("T")
END = -1
"""The number of no tensor."""

WELL = 0
DATA = 1
"""Tags of the two messages that answer a request."""


@dataclass(frozen=True)
class _Holding:
    """The piece of a tensor that one rank holds."""

    rank: int
    dtype: torch.dtype
    shape: Shape
    """Of the whole."""
    offsets: Shape
    sizes: Shape


class _ElsewhereError(Exception):
    """Another rank failed and will say so itself."""


def on_first_rank(
    state: Mapping[str, Tensor | Shard],
    complete: Mapping[str, Shape] | None,
    ranks: Ranks,
    write: Callable[[Source], T],
) -> T:
    """Run `write` on rank 0, where it sees the tensors of all ranks, and return on every rank what it returned.

    Its source has the order of `complete`, the names and shapes of all ranks' tensors; if that is not given, of rank
    0's names, then of the further names of the next rank.

    Raises:
        OSError, ValueError: it failed, or another rank did; the same on all ranks.
    """
    source = _SpreadSource(state, complete, ranks)
    value: T | None = None
    failure: BaseException | None = None
    if ranks.rank == 0:
        try:
            value = write(source)
        except _ElsewhereError:
            pass
        except BaseException as error:
            failure = error
        source.end()
    else:
        failure = source.serve()

    def tell() -> T | None:
        if failure is not None:
            raise failure
        return value

    told = ranks.each(tell)[0]
    assert told is not None, "nothing failed"
    return told


class _SpreadSource:
    """Asks on rank 0, answers on the others."""

    def __init__(self, state: Mapping[str, Tensor | Shard], complete: Mapping[str, Shape] | None, ranks: Ranks):
        self._ranks = ranks
        self._shards = {name: as_shard(held) for name, held in state.items()}
        pieces = _chosen(ranks.each(lambda: _held(self._shards, ranks.rank)))
        shapes = {name: found[0].shape for name, found in pieces.items()} if complete is None else dict(complete)
        assert pieces.keys() == shapes.keys(), f"no rank holds {sorted(pieces.keys() ^ shapes.keys())[0]}, or it is new"
        self._pieces = pieces
        self._slots = list(slots(shapes))
        self._numbers = {slot.released: number for number, slot in enumerate(self._slots)}

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """Every tensor's released name, and its shape."""
        return ((slot.released, slot.shape) for slot in self._slots)

    def stored(self, name: str) -> Stored:
        """The whole tensor, on rank 0; a rank's own memory where it is there."""
        number = self._numbers[name]
        slot = self._slots[number]
        parts = self._parts(self._slots[number])
        dtype = self._pieces[slot.model][0].dtype
        if [rank for rank, _ in parts] == [0]:
            self._say(number)
            return Stored(KINDS[dtype], self._own(slot))
        # memory first: once the others were asked, what they send must be received
        whole = torch.empty(slot.shape, dtype=dtype)
        places = {rank: whole[box] for rank, box in parts}
        rooms = {rank: place.contiguous() for rank, place in places.items() if rank != 0}
        self._say(number)
        self._receive(rooms)
        for rank, place in places.items():
            place.copy_(self._own(slot) if rank == 0 else rooms[rank])
        return Stored(KINDS[dtype], whole)

    def end(self) -> None:
        """Tell the others that nothing more is wanted."""
        self._say(END)

    def serve(self) -> BaseException | None:
        """Send what rank 0 asks for until it wants no more; what failed here."""
        failure: BaseException | None = None
        while (number := self._hear()) != END:
            slot = self._slots[number]
            if self._ranks.rank in [rank for rank, _ in self._parts(slot)]:
                failure = self._send(slot) or failure
        return failure

    def _send(self, slot: Slot) -> BaseException | None:
        """Say whether it went well, and send what was asked for; nothing of use if it went wrong."""
        failure: BaseException | None = None
        try:
            data = _bytes(self._own(slot).cpu().contiguous())
        except Exception as error:
            failure = error
            data = torch.empty(self._bytes_here(slot), dtype=torch.uint8)
        with self._ranks.talking():
            dist.send(torch.tensor(failure is None), group=self._ranks.group, group_dst=0, tag=WELL)
            dist.send(data, group=self._ranks.group, group_dst=0, tag=DATA)
        return failure

    def _receive(self, rooms: Mapping[int, Tensor]) -> None:
        """Fill them from those ranks, all at once."""
        group = self._ranks.group
        well = {rank: torch.tensor(False) for rank in rooms}
        with self._ranks.talking():
            works = [dist.irecv(well[rank], group=group, group_src=rank, tag=WELL) for rank in rooms]
            works += [dist.irecv(_bytes(room), group=group, group_src=rank, tag=DATA) for rank, room in rooms.items()]
            for work in works:
                assert work is not None, "rank 0 is in the group"
                work.wait()
        if not all(well.values()):
            raise _ElsewhereError

    def _say(self, number: int) -> None:
        with self._ranks.talking():
            dist.broadcast(torch.tensor(number), group=self._ranks.group, group_src=0)

    def _hear(self) -> int:
        number = torch.tensor(END)
        with self._ranks.talking():
            dist.broadcast(number, group=self._ranks.group, group_src=0)
        return int(number)

    def _parts(self, slot: Slot) -> list[tuple[int, Box]]:
        """Which rank sends which part of a released tensor."""
        pieces = self._pieces[slot.model]
        if slot.expert is None:
            return [(piece.rank, box_of(piece.offsets, piece.sizes)) for piece in pieces]
        return [
            (piece.rank, box_of(piece.offsets[1:], piece.sizes[1:]))
            for piece in pieces
            if 0 <= slot.expert - piece.offsets[0] < piece.sizes[0]
        ]

    def _bytes_here(self, slot: Slot) -> int:
        (box,) = (box for rank, box in self._parts(slot) if rank == self._ranks.rank)
        return prod(x.stop - x.start for x in box) * self._pieces[slot.model][0].dtype.itemsize

    def _own(self, slot: Slot) -> Tensor:
        shard: Shard | None = self._shards[slot.model]
        if shard is not None and slot.expert is not None:
            shard = shard.expert(slot.expert)
        assert shard is not None, "only what is here is asked for"
        return shard.tensor.detach()


def _held(shards: Mapping[str, Shard], rank: int) -> dict[str, _Holding]:
    return {
        name: _Holding(rank, shard.tensor.dtype, shard.shape, shard.offsets, tuple(shard.tensor.shape))
        for name, shard in shards.items()
    }


def _chosen(ranks: list[dict[str, _Holding]]) -> dict[str, list[_Holding]]:
    """Pieces that make up each tensor exactly; of the ranks that hold the same piece, the first."""
    pieces: dict[str, dict[tuple[Shape, Shape], _Holding]] = {}
    for held in ranks:
        for name, piece in held.items():
            found = pieces.setdefault(name, {})
            if 0 not in piece.sizes:
                found.setdefault((piece.offsets, piece.sizes), piece)
    for name, found in pieces.items():
        kinds = {(piece.dtype, piece.shape) for piece in found.values()}
        assert len(kinds) == 1, f"the ranks hold {name} as {kinds}"
        ((_, shape),) = kinds
        assert sum(prod(sizes) for _, sizes in found) == prod(shape), f"the pieces of {name} are not the whole"
    return {name: list(found.values()) for name, found in pieces.items()}


def _bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor; gloo does not know every dtype."""
    return tensor.reshape(-1).view(torch.uint8)
