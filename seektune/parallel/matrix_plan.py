"""Which process works on which whole matrices of sharded parameters; plain arithmetic without torch.

An optimizer such as Muon needs whole matrices, but each process has shards of them. A unit is what one process works
on at once; units are assigned by cost, and taken in rounds of bounded size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Cost = Callable[[int, int], float]
"""The cost of a matrix, by its numbers of rows and columns."""
ROUND_ELEMENTS = 2**26
"""Elements of whole matrices that a process holds in a round: 128 MB in bf16."""


@dataclass(frozen=True)
class MatrixStack:
    """The matrices `[count, rows, columns]` of a parameter, and how `shards` processes share them."""

    count: int
    rows: int
    columns: int
    cut: int | None
    """The dim of the parameter that is sharded; None if it is whole."""
    dims: int
    """Of the parameter: 3, or 2 if its rows are those of all matrices."""
    shards: int

    def units(self, parameter: int) -> list["Unit"]:
        """The units of the parameter with that index."""
        if self.cut is None or self.shards == 1:
            return self._whole(parameter, self.count, 0)
        if self.dims == 2:
            height = self.count * self.rows
            cut = chunks(height, self.shards)
            return [Unit(parameter, None, (self.count, self.rows, self.columns), 0, 0, cut)]
        if self.cut == 0:
            each = chunks(self.count, self.shards)
            here = [(shard, count) for shard, count in enumerate(each) if count]
            return [unit for shard, count in here for unit in self._whole(parameter, count, shard)]
        cut = chunks((self.rows, self.columns)[self.cut - 1], self.shards)
        shape = (1, self.rows, self.columns)
        return [Unit(parameter, index, shape, 0, self.cut - 1, cut) for index in range(self.count)]

    def _whole(self, parameter: int, count: int, holder: int) -> list["Unit"]:
        """Units of `count` matrices that are whole in a shard: one, or single matrices if they exceed a round."""
        if self.dims == 3 and count * self.rows * self.columns > ROUND_ELEMENTS:
            shape = (1, self.rows, self.columns)
            return [Unit(parameter, index, shape, holder, None, ()) for index in range(count)]
        return [Unit(parameter, None, (count, self.rows, self.columns), holder, None, ())]


@dataclass(frozen=True)
class Unit:
    """Matrices that one process works on at once."""

    parameter: int
    """Index of the parameter."""
    index: int | None
    """The only matrix of the local tensor that is meant; None for all of them."""
    shape: tuple[int, int, int]
    """Of the whole matrices."""
    holder: int
    """The shard that holds them, if they are whole there."""
    cut: int | None
    """The dim, 0 for rows or 1 for columns, along which the shards' pieces are joined; None if one shard has all."""
    sizes: tuple[int, ...]
    """Sizes of the shards' pieces along that dim."""

    @property
    def numel(self) -> int:
        """Elements of the whole matrices."""
        count, rows, columns = self.shape
        return count * rows * columns

    def piece_shape(self, shard: int) -> tuple[int, int]:
        """Rows and columns of a shard's piece."""
        count, rows, columns = self.shape
        return (self.sizes[shard], columns) if self.cut == 0 else (count * rows, self.sizes[shard])


@dataclass(frozen=True)
class AssignedUnit:
    """A unit and the process that works on it."""

    unit: Unit
    copy: int
    """Index of the replica."""
    shard: int


def chunks(size: int, shards: int) -> tuple[int, ...]:
    """The sizes of the shards of a dim, as FSDP2 cuts it: equal, the last ones shorter or empty."""
    each = -(-size // shards)
    return tuple(max(0, min(each, size - shard * each)) for shard in range(shards))


def assign(units: Sequence[Unit], shards: int, copies: int, cost: Cost) -> list[AssignedUnit]:
    """Each unit and its process, the costliest first; matrices that are whole somewhere stay in that shard.

    Every unit goes to the process with the least to do so far, so that the largest load is close to the mean.
    """
    loads = {(copy, shard): 0.0 for copy in range(copies) for shard in range(shards)}
    prices = {unit: unit.shape[0] * cost(*unit.shape[1:]) for unit in units}
    found = []
    # units that must stay in a shard come first: the others even out what they leave
    for unit in sorted(units, key=lambda unit: (unit.cut is not None, -prices[unit])):
        places = [place for place in loads if unit.cut is not None or place[1] == unit.holder]
        copy, shard = min(places, key=lambda place: loads[place])
        loads[copy, shard] += prices[unit]
        found.append(AssignedUnit(unit, copy, shard))
    return found


def rounds(assigned: Sequence[AssignedUnit], elements: int = ROUND_ELEMENTS) -> list[list[AssignedUnit]]:
    """The units in rounds in which no process has more than `elements`, unless a single unit is larger."""
    found: list[list[AssignedUnit]] = []
    filled: dict[tuple[int, int], tuple[int, int]] = {}
    for each in assigned:
        place = each.copy, each.shard
        number, size = filled.get(place, (0, 0))
        if size and size + each.unit.numel > elements:
            number += 1
            size = 0
        filled[place] = number, size + each.unit.numel
        found += [[] for _ in range(number + 1 - len(found))]
        found[number].append(each)
    return found
