"""Whole matrices of sharded parameters: gathered to the processes that work on them, results scattered back.

A round's messages are sent while the round before is computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from seektune.parallel.matrix_plan import AssignedUnit, MatrixStack, Unit

Read = Callable[[Unit], Tensor]
"""The local piece of a unit, of the round's dtype and device."""
Work = Callable[[list[Tensor]], list[Tensor]]
"""Results of whole matrices `[count, rows, columns]`, of the same shapes."""
Apply = Callable[[Unit, Tensor], None]
"""Gets the local piece of a unit's result."""


@dataclass(frozen=True)
class ShardPlace:
    """The processes that share a parameter, and this one's place among them."""

    shard: int = 0
    shards: int = 1
    copy: int = 0
    copies: int = 1
    shard_group: dist.ProcessGroup | None = None
    copy_group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, mesh: DeviceMesh | None) -> "ShardPlace":
        """This process's place in FSDP2's mesh of a parameter; without one, the parameter is its own."""
        if mesh is None:
            return cls()
        shards = mesh.get_group("shard")
        copies = mesh.get_group("replicate") if mesh.ndim == 2 else None
        copy = (0, 1) if copies is None else (copies.rank(), copies.size())
        return cls(shards.rank(), shards.size(), *copy, shards, copies)


def stack_of(parameter: Tensor, count: int) -> MatrixStack:
    """The matrices of a parameter; `count` is how many of them the rows of one with two dims are."""
    cut = None
    shards = 1
    if isinstance(parameter, DTensor):
        placement = parameter.placements[-1]
        assert isinstance(placement, Shard), "FSDP2 shards along the last dim of its mesh"
        cut = placement.dim
        shards = parameter.device_mesh.size(-1)
    *first, rows, columns = parameter.shape
    if first:
        return MatrixStack(first[0], rows, columns, cut, 3, shards)
    return MatrixStack(count, rows // count, columns, cut, 2, shards)


class MatrixRound:
    """The messages of one round, between the processes that share its parameters."""

    def __init__(self, units: Sequence[AssignedUnit], place: ShardPlace, dtype: torch.dtype, device: torch.device):
        self._units = units
        self._place = place
        self._empty = partial(torch.empty, dtype=dtype, device=device)
        here = [each for each in units if each.copy == place.copy]
        self._cut = [each for each in here if each.unit.cut is not None]
        self._own = [each for each in here if each.shard == place.shard]
        self._received: Sequence[Tensor] = ()
        self._sent: Tensor | None = None
        self._work: dist.Work | None = None
        self._read: Read | None = None
        self._results: dict[Unit, Tensor] = {}

    def gather(self, read: Read) -> None:
        """Begin to send this process's pieces to the processes that work on them."""
        self._read = read
        place = self._place
        own = [each.unit for each in self._own if each.unit.cut is not None]
        sent = [[read(each.unit) for each in self._cut if each.shard == shard] for shard in range(place.shards)]
        sizes = [sum(prod(unit.piece_shape(shard)) for unit in own) for shard in range(place.shards)]
        self._exchange(sent, sizes)

    def whole(self) -> list[Tensor]:
        """The whole matrices that this process works on, once they are here."""
        self._wait()
        assert self._read is not None, "gather comes first"
        found = []
        begins = [0] * self._place.shards
        for each in self._own:
            unit = each.unit
            if unit.cut is None:
                found.append(self._read(unit).reshape(unit.shape))
                continue
            shapes = [unit.piece_shape(shard) for shard in range(self._place.shards)]
            pieces = []
            for shard, shape in enumerate(shapes):
                pieces.append(self._received[shard][begins[shard] : begins[shard] + prod(shape)].view(shape))
                begins[shard] += prod(shape)
            found.append(torch.cat(pieces, dim=unit.cut).view(unit.shape))
        return found

    def scatter(self, results: Sequence[Tensor]) -> None:
        """Begin to send the results, in the order of `whole`, to the processes that hold the pieces."""
        place = self._place
        self._results = {each.unit: result for each, result in zip(self._own, results, strict=True)}
        pieces = [_split(unit, result) for unit, result in self._results.items() if unit.cut is not None]
        sent = [[each[shard] for each in pieces] for shard in range(place.shards)]
        mine = [[each.unit for each in self._cut if each.shard == shard] for shard in range(place.shards)]
        self._exchange(sent, [sum(prod(unit.piece_shape(place.shard)) for unit in units) for units in mine])

    def finish(self, apply: Apply) -> None:
        """Wait for the results, pass them on to the replicas, and apply each piece that is held here."""
        self._wait()
        begins = [0] * self._place.shards
        pieces: dict[Unit, Tensor] = {unit: x for unit, x in self._results.items() if unit.cut is None}
        for each in self._cut:
            shape = each.unit.piece_shape(self._place.shard)
            begin = begins[each.shard]
            pieces[each.unit] = self._received[each.shard][begin : begin + prod(shape)].view(shape)
            begins[each.shard] += prod(shape)
        for unit, piece in self._with_copies(pieces).items():
            apply(unit, piece)
        # the round serves the next step too, but not its tensors
        self._received = ()
        self._sent = None
        self._results = {}

    def _with_copies(self, pieces: dict[Unit, Tensor]) -> dict[Unit, Tensor]:
        """The pieces with those that other replicas worked out."""
        place = self._place
        if place.copies == 1:
            return pieces
        found: dict[Unit, Tensor] = {}
        works = []
        for copy in range(place.copies):
            held = [each.unit for each in self._units if each.copy == copy and self._is_here(each)]
            shapes = [unit.shape if unit.cut is None else unit.piece_shape(place.shard) for unit in held]
            buffer = self._empty(sum(map(prod, shapes)))
            if copy == place.copy and held:
                torch.cat([pieces[unit].flatten() for unit in held], out=buffer)
            works.append(dist.broadcast(buffer, group=place.copy_group, group_src=copy, async_op=True))
            parts = buffer.split([prod(shape) for shape in shapes])
            found |= {unit: part.view(shape) for unit, part, shape in zip(held, parts, shapes, strict=True)}
        for work in works:
            work.wait()
        return found

    def _is_here(self, each: AssignedUnit) -> bool:
        """Whether a piece of the unit is held by this shard."""
        return each.unit.cut is not None or each.shard == self._place.shard

    def _exchange(self, sent: Sequence[Sequence[Tensor]], sizes: list[int]) -> None:
        """Begin an all-to-all of the pieces for each shard; `sizes` are the elements that arrive from each."""
        if not self._cut:
            return
        leaving = [sum(piece.numel() for piece in pieces) for pieces in sent]
        self._sent = torch.cat([self._empty(0), *(piece.flatten() for pieces in sent for piece in pieces)])
        arriving = self._empty(sum(sizes))
        self._received = arriving.split(sizes)
        group = self._place.shard_group
        self._work = dist.all_to_all_single(arriving, self._sent, sizes, leaving, group=group, async_op=True)

    def _wait(self) -> None:
        if self._work is not None:
            self._work.wait()
        self._work = None


def run_rounds(rounds: Sequence[MatrixRound], read: Read, work: Work, apply: Apply) -> None:
    """Gather, work, scatter and apply, round after round; the next round is gathered while one is worked on."""
    before: MatrixRound | None = None
    for number, each in enumerate(rounds):
        if number == 0:
            each.gather(read)
        if number + 1 < len(rounds):
            rounds[number + 1].gather(read)
        each.scatter(work(each.whole()))
        if before is not None:
            before.finish(apply)
        before = each
    if before is not None:
        before.finish(apply)


def _split(unit: Unit, result: Tensor) -> tuple[Tensor, ...]:
    """The pieces of all shards."""
    count, rows, columns = unit.shape
    assert unit.cut is not None, "the unit is cut"
    return result.reshape(count * rows, columns).split(unit.sizes, dim=unit.cut)
