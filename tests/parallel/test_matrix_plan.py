"""Whole matrices are assigned evenly, each once, and in rounds that fit."""

import pytest
from torch.distributed.tensor import Shard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset

from seektune.parallel.matrix_plan import ROUND_ELEMENTS, MatrixStack, assign, chunks, rounds
from seektune.train.optim.newton_schulz import iteration_flops

FLASH = [(1024, 4096), (32768, 1024), (512, 4096), (4096, 8192), (256, 4096), (2048, 4096), (4096, 2048), (2048, 4096)]
"""Dense matrices of a layer."""


def dense(shards: int, layers: int = 11) -> list:
    stacks = [MatrixStack(1, rows, columns, 0, 2, shards) for rows, columns in FLASH * layers]
    return [unit for number, stack in enumerate(stacks) for unit in stack.units(number)]


@pytest.mark.parametrize(("size", "shards"), [(24, 32), (10, 4), (9, 3), (1, 2), (7, 7)])
def test_pieces_are_those_of_torchs_shards(size, shards):
    for shard, length in enumerate(chunks(size, shards)):
        shape, _ = _compute_local_shape_and_global_offset((size, 3), (shards,), [shard], [Shard(0)])
        assert (shape[0] if 0 not in shape else 0) == length


@pytest.mark.parametrize(("shards", "copies"), [(32, 1), (8, 2), (1, 1), (4, 4)])
def test_every_matrix_has_one_process_and_loads_are_even(shards, copies):
    units = dense(shards)
    found = assign(units, shards, copies, iteration_flops)
    assert sorted(each.unit.parameter for each in found) == sorted(unit.parameter for unit in units)
    loads = dict.fromkeys(((copy, shard) for copy in range(copies) for shard in range(shards)), 0.0)
    for each in found:
        loads[each.copy, each.shard] += iteration_flops(*each.unit.shape[1:])
    largest = max(iteration_flops(*shape) for shape in FLASH)
    mean = sum(loads.values()) / len(loads)
    assert max(loads.values()) <= max(mean + largest / 2, largest)


def test_experts_that_are_whole_in_a_shard_stay_there():
    stacks = [MatrixStack(10, 8, 4, 0, 3, 4) for _ in range(3)]
    units = [unit for number, stack in enumerate(stacks) for unit in stack.units(number)]
    found = assign(units, 4, 2, iteration_flops)
    assert all(each.shard == each.unit.holder for each in found)
    assert [each.unit.shape[0] for each in found if each.unit.parameter == 0] == [3, 3, 3, 1]
    assert {each.copy for each in found} == {0, 1}


@pytest.mark.parametrize("cut", [1, 2])
def test_experts_whose_matrices_are_cut_are_units_of_their_own(cut):
    units = MatrixStack(3, 8, 12, cut, 3, 4).units(5)
    assert [unit.index for unit in units] == [0, 1, 2]
    assert {unit.piece_shape(1) for unit in units} == {(2, 12) if cut == 1 else (8, 3)}


def test_rounds_are_bounded_and_hold_everything_in_order():
    found = assign(dense(8), 8, 1, iteration_flops)
    made = rounds(found, 2**24)
    assert sorted(map(id, found)) == sorted(id(each) for one in made for each in one)
    for each in made:
        sizes = [sum(x.unit.numel for x in each if x.shard == shard) for shard in range(8)]
        largest = max(x.unit.numel for x in each)
        assert max(sizes) <= max(2**24, largest)
    assert len(made) > 1
    assert len(rounds(found, 2**40)) == 1


def test_experts_that_exceed_a_round_are_units_of_their_own():
    units = MatrixStack(8, 8192, 4096, 0, 3, 2).units(5)
    assert [(unit.holder, unit.index, unit.shape) for unit in units] == [
        (shard, index, (1, 8192, 4096)) for shard in (0, 1) for index in range(4)
    ]
    (alone,) = MatrixStack(2, 8192, 4096, None, 3, 1).units(5)
    assert (alone.index, alone.shape) == (None, (2, 8192, 4096))
    assert all(unit.numel <= ROUND_ELEMENTS for unit in units)
