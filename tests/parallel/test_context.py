"""What slices of a row know together is what the whole row knows, whatever its documents and wherever it is cut."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from seektune.parallel.context import Slice, SlicedLayout
from seektune.sequence import IGNORE_INDEX, SequenceLayout
from tests.distributed.workers import run_workers

LENGTHS = (1, 2, 3, 5, 8, 31, 127, 128, 130, 257, 400)
COUNTS = (1, 3, 7, 15, 127)


def made_documents(length: int, dice: torch.Generator) -> Tensor:
    """Rows of one document, of many short ones, of some and padding."""
    one = torch.ones(length, dtype=torch.int64)
    many = (torch.rand(length, generator=dice) < 0.3).cumsum(0) + 1
    some = (torch.rand(length, generator=dice) < 0.02).cumsum(0) + 1
    some[torch.rand(length, generator=dice) < 0.02] = 0
    some[length - length // 5 :] = 0
    return torch.stack([one, many, some])


def check_all() -> int:
    """In each worker, for many rows; the number of entries that were looked at."""
    part, looked = Slice(dist.group.WORLD, dist.get_rank(), dist.get_world_size()), 0
    for length in LENGTHS:
        dice = torch.Generator().manual_seed(length)
        here = -(-length // part.size)
        documents = torch.nn.functional.pad(made_documents(length, dice), (0, here * part.size - length))
        whole = SequenceLayout.from_documents(documents)
        mine = SlicedLayout.cut(whole, part)
        check_labels(whole, mine, part, torch.randint(9, documents.shape, generator=dice))
        for count in COUNTS:
            check_preceded(part, torch.randn(3, here * part.size, 2, generator=dice, dtype=torch.float64), count)
        for layout, sliced in ((whole, mine), (whole.followed(), mine.followed())):
            looked += check_windows(layout, sliced, part, 4) + check_windows(layout, sliced, part, 128)
    return looked


def check_labels(whole: SequenceLayout, mine: SlicedLayout, part: Slice, labels: Tensor) -> None:
    labels[labels == 0] = IGNORE_INDEX
    for steps in (1, 2) if labels.shape[1] > 2 else (1,):
        assert torch.equal(mine.targets(labels, steps), part.mine(whole.targets(labels, steps)))
    assert torch.equal(mine.positions, part.mine(whole.positions))
    assert torch.equal(mine.followed().real, part.mine(whole.followed().real))
    numbers, count = whole.numbered()
    assert torch.equal(mine.numbered()[0], part.mine(numbers))
    assert mine.numbered()[1] == count
    assert torch.equal(mine.total(part.mine(labels).sum()), labels.sum())


def check_preceded(part: Slice, x: Tensor, count: int) -> None:
    """Values, and gradients: each token gets one from every slice that saw it."""
    mine = part.mine(x).clone().requires_grad_()
    length = mine.shape[1]
    seen = part.preceded(mine, count)
    padded = torch.nn.functional.pad(x, (0, 0, count, 0))
    assert torch.equal(seen, padded[:, part.rank * length : (part.rank + 1) * length + count])
    seen.sum().backward()
    assert mine.grad is not None
    times = torch.zeros(count + x.shape[1])
    for rank in range(part.size):
        times[rank * length : (rank + 1) * length + count] += 1
    expected = part.mine(times[None, count:])
    assert torch.equal(mine.grad[0, :, 0].float(), expected[0])


def check_windows(whole: SequenceLayout, mine: SlicedLayout, part: Slice, ratio: int) -> int:
    """Entries are made once, at the same place, from the same tokens, and seen by the same queries."""
    windows, sliced = whole.windows(ratio), mine.windows(ratio)
    assert sliced.most == windows.most  # an indexer that counted those made here would choose among too few
    assert torch.equal(sliced.first_BT, part.mine(windows.first_BT))
    assert torch.equal(sliced.count_BT, part.mine(windows.count_BT))
    index = torch.arange(whole.positions.shape[1], dtype=torch.float64).expand_as(whole.positions).unsqueeze(-1)
    before = sliced.preceded(part.mine(index), ratio - 1)
    rows = torch.arange(len(before))[:, None]
    made = torch.cat(
        [before[rows, sliced.last_BE], before[rows, sliced.last_BE + ratio - 1], sliced.position_BE.unsqueeze(-1)], -1
    )
    entries = sliced.of_row(made)
    last = windows.last_BE.double()
    expected = torch.stack([last - ratio + 1, last, windows.position_BE.double()], -1)
    exists = torch.arange(last.shape[1]) < (windows.first_BT + windows.count_BT)[:, -1:]
    assert entries.shape == expected.shape
    assert torch.equal(entries[exists], expected[exists])
    assert torch.isfinite(entries).all()
    return int(exists.sum())


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 5])
def test_slices_know_what_the_row_knows(size: int):
    looked = run_workers(size, check_all)
    assert min(looked) > 300


def test_a_query_of_a_slice_may_see_the_entries_of_the_whole_row() -> None:
    whole = SequenceLayout.single(1, 64)
    for rank in range(4):
        # no process is asked
        part = SlicedLayout.cut(whole, Slice(None, rank, 4))  # type: ignore[arg-type]
        assert part.windows(4).most == whole.windows(4).most == 16
        assert part.windows(4).last_BE.shape == torch.Size([1, 4])
