"""Gather a sharded model on rank 0, one tensor at a time, so that rank 0 can write it like a model of one process.

Rank 0 broadcasts which tensor it needs, and the ranks that hold its shards send them. A stacked expert weight is
requested one expert at a time. Every request reaches every rank, so no rank waits long without communication.
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
"""The request that ends the gathering."""

STATUS_TAG = 0
DATA_TAG = 1
"""Tags of the two messages that reply to a request."""


@dataclass(frozen=True)
class _ShardInfo:
    """The shard of a tensor that one rank holds."""

    rank: int
    dtype: torch.dtype
    shape: Shape
    """Shape of the whole tensor."""
    offsets: Shape
    sizes: Shape


class _RemoteError(Exception):
    """Another rank failed; that rank raises the error."""


def on_first_rank(
    state: Mapping[str, Tensor | Shard],
    complete: Mapping[str, Shape] | None,
    ranks: Ranks,
    write: Callable[[Source], T],
) -> T:
    """Run `write` on rank 0 with a source of all ranks' tensors, and return its result on every rank.

    The source is ordered like `complete`, the names and shapes of all ranks' tensors. Without it, rank 0's names come
    first, then further names of rank 1, and so on.

    Raises:
        OSError, ValueError: `write` or another rank failed; the same error on all ranks.
    """
    source = _ShardedSource(state, complete, ranks)
    value: T | None = None
    failure: BaseException | None = None
    if ranks.rank == 0:
        try:
            value = write(source)
        except _RemoteError:
            pass
        except BaseException as error:
            failure = error
        source.end()
    else:
        failure = source.serve()

    def outcome() -> T | None:
        if failure is not None:
            raise failure
        return value

    result = ranks.each(outcome)[0]
    assert result is not None, "nothing failed"
    return result


class _ShardedSource:
    """Requests tensors on rank 0 and serves them on the other ranks."""

    def __init__(self, state: Mapping[str, Tensor | Shard], complete: Mapping[str, Shape] | None, ranks: Ranks):
        self._ranks = ranks
        self._shards = {name: as_shard(tensor) for name, tensor in state.items()}
        holders = _unique_shards(ranks.each(lambda: _local_infos(self._shards, ranks.rank)))
        shapes = {name: infos[0].shape for name, infos in holders.items()} if complete is None else dict(complete)
        assert holders.keys() == shapes.keys(), f"{sorted(holders.keys() ^ shapes.keys())[0]} is only in one of the two"
        self._holders = holders
        self._slots = list(slots(shapes))
        self._numbers = {slot.released: number for number, slot in enumerate(self._slots)}

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """Released name and shape of every tensor."""
        return ((slot.released, slot.shape) for slot in self._slots)

    def stored(self, name: str) -> Stored:
        """The whole tensor, on rank 0; without a copy if rank 0 holds all of it."""
        number = self._numbers[name]
        slot = self._slots[number]
        parts = self._parts(self._slots[number])
        dtype = self._holders[slot.model][0].dtype
        if [rank for rank, _ in parts] == [0]:
            self._request(number)
            return Stored(KINDS[dtype], self._local_tensor(slot))
        # allocated before the request: after it, the other ranks send, and this rank must receive
        whole = torch.empty(slot.shape, dtype=dtype)
        views = {rank: whole[box] for rank, box in parts}
        buffers = {rank: view.contiguous() for rank, view in views.items() if rank != 0}
        self._request(number)
        self._receive(buffers)
        for rank, view in views.items():
            view.copy_(self._local_tensor(slot) if rank == 0 else buffers[rank])
        return Stored(KINDS[dtype], whole)

    def end(self) -> None:
        """End `serve` on the other ranks."""
        self._request(END)

    def serve(self) -> BaseException | None:
        """Send the tensors that rank 0 requests until it ends; returns the last error of this rank."""
        failure: BaseException | None = None
        while (number := self._next_request()) != END:
            slot = self._slots[number]
            if self._ranks.rank in [rank for rank, _ in self._parts(slot)]:
                failure = self._send(slot) or failure
        return failure

    def _send(self, slot: Slot) -> BaseException | None:
        """Send the status and this rank's shard; after an error the data is arbitrary."""
        failure: BaseException | None = None
        try:
            data = _bytes(self._local_tensor(slot).cpu().contiguous())
        except Exception as error:
            failure = error
            data = torch.empty(self._local_bytes(slot), dtype=torch.uint8)
        with self._ranks.communicating():
            dist.send(torch.tensor(failure is None), group=self._ranks.group, group_dst=0, tag=STATUS_TAG)
            dist.send(data, group=self._ranks.group, group_dst=0, tag=DATA_TAG)
        return failure

    def _receive(self, buffers: Mapping[int, Tensor]) -> None:
        """Fill each rank's buffer, all ranks concurrently."""
        group = self._ranks.group
        succeeded = {rank: torch.tensor(False) for rank in buffers}
        with self._ranks.communicating():
            works = [dist.irecv(succeeded[rank], group=group, group_src=rank, tag=STATUS_TAG) for rank in buffers]
            works += [
                dist.irecv(_bytes(buffer), group=group, group_src=rank, tag=DATA_TAG)
                for rank, buffer in buffers.items()
            ]
            for work in works:
                assert work is not None, "rank 0 is in the group"
                work.wait()
        if not all(succeeded.values()):
            raise _RemoteError

    def _request(self, number: int) -> None:
        with self._ranks.communicating():
            dist.broadcast(torch.tensor(number), group=self._ranks.group, group_src=0)

    def _next_request(self) -> int:
        number = torch.tensor(END)
        with self._ranks.communicating():
            dist.broadcast(number, group=self._ranks.group, group_src=0)
        return int(number)

    def _parts(self, slot: Slot) -> list[tuple[int, Box]]:
        """Which rank sends which box of a released tensor."""
        holders = self._holders[slot.model]
        if slot.expert is None:
            return [(info.rank, box_of(info.offsets, info.sizes)) for info in holders]
        return [
            (info.rank, box_of(info.offsets[1:], info.sizes[1:]))
            for info in holders
            if 0 <= slot.expert - info.offsets[0] < info.sizes[0]
        ]

    def _local_bytes(self, slot: Slot) -> int:
        (box,) = (box for rank, box in self._parts(slot) if rank == self._ranks.rank)
        return prod(x.stop - x.start for x in box) * self._holders[slot.model][0].dtype.itemsize

    def _local_tensor(self, slot: Slot) -> Tensor:
        shard: Shard | None = self._shards[slot.model]
        if shard is not None and slot.expert is not None:
            shard = shard.expert(slot.expert)
        assert shard is not None, "rank 0 requests only what this rank holds"
        return shard.tensor.detach()


def _local_infos(shards: Mapping[str, Shard], rank: int) -> dict[str, _ShardInfo]:
    return {
        name: _ShardInfo(rank, shard.tensor.dtype, shard.shape, shard.offsets, tuple(shard.tensor.shape))
        for name, shard in shards.items()
    }


def _unique_shards(ranks: list[dict[str, _ShardInfo]]) -> dict[str, list[_ShardInfo]]:
    """Shards that cover each tensor exactly once; of ranks with the same shard, the first."""
    holders: dict[str, dict[tuple[Shape, Shape], _ShardInfo]] = {}
    for local in ranks:
        for name, info in local.items():
            unique = holders.setdefault(name, {})
            if 0 not in info.sizes:
                unique.setdefault((info.offsets, info.sizes), info)
    for name, unique in holders.items():
        types = {(info.dtype, info.shape) for info in unique.values()}
        assert len(types) == 1, f"the ranks hold {name} as {types}"
        ((_, shape),) = types
        assert sum(prod(sizes) for _, sizes in unique) == prod(shape), f"the shards of {name} do not cover it"
    return {name: list(unique.values()) for name, unique in holders.items()}


def _bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor as bytes, because gloo does not support every dtype."""
    return tensor.reshape(-1).view(torch.uint8)
