import json
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from seektune.data.config import BatchConfig
from seektune.data.example import Example
from seektune.data.loader import Loader
from seektune.data.mixing import Mixture
from seektune.data.packing import RowPlan, best_fit, collate, singly
from seektune.sequence import SequenceLayout

PAD = 2
FIXTURES = Path(__file__).parents[1] / "fixtures"


def example(length: int, name: str = "x", first: int = 10) -> Example:
    tokens = list(range(first, first + length))
    return Example(tokens, [False] + [True] * (len(tokens) - 1), name)


def test_a_row_of_one_example_is_filled_up_to_the_longest():
    batch = collate(singly([example(3), example(5)]), PAD)
    assert batch.tokens.tolist() == [[10, 11, 12, PAD, PAD], [10, 11, 12, 13, 14]]
    assert batch.labels.tolist() == [[-100, 11, 12, -100, -100], [-100, 11, 12, 13, 14]]
    assert batch.documents.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.taught() == 2 + 4


def test_padding_is_masked_by_length_not_by_id():
    taught_pad = Example([0, PAD, PAD], [False, True, True], "its text holds the pad id")
    batch = collate([[taught_pad], [example(4)]], PAD)
    assert batch.documents[0].tolist() == [1, 1, 1, 0]
    assert batch.labels[0].tolist() == [-100, PAD, PAD, -100]


def test_weights_are_a_column_only_where_they_are_wanted():
    rows = [[replace(example(2), weight=0.5), replace(example(3), weight=2.0)]]
    assert collate(rows, PAD, length=7).columns == {}
    batch = collate(rows, PAD, length=7, weighted=True)
    assert batch.columns["weights"].tolist() == [[0.5, 0.5, 2, 2, 2, 0, 0]]
    assert batch.taught() == 3
    assert batch.weight() == 0.5 + 2 * 2.0


def test_documents_of_a_row_are_numbered_from_one():
    batch = collate([[example(2), example(3, first=20)]], PAD, length=7)
    assert batch.documents.tolist() == [[1, 1, 2, 2, 2, 0, 0]]
    assert batch.tokens.tolist() == [[10, 11, 20, 21, 22, PAD, PAD]]
    assert batch.labels.tolist() == [[-100, 11, -100, 21, 22, -100, -100]]
    assert SequenceLayout.from_documents(batch.documents).positions[0, :5].tolist() == [0, 1, 0, 1, 2]


def rows_of(lengths: list[int], length: int) -> list[list[int]]:
    row_of, count = best_fit(np.array(lengths), length)
    return [[size for size, row in zip(lengths, row_of, strict=True) if row == number] for number in range(count)]


def one_by_one(lengths: list[int], length: int) -> list[int]:
    """The space left in the rows of best-fit decreasing, put one after another."""
    spaces: list[int] = []
    for size in sorted(lengths, reverse=True):
        enough = [space for space in spaces if space >= size]
        if enough:
            spaces.remove(min(enough))
        spaces.append((min(enough) if enough else length) - size)
    return sorted(spaces)


@pytest.mark.parametrize("seed", range(20))
def test_packing_is_best_fit_decreasing(seed):
    dice = np.random.default_rng(seed)
    length = int(dice.integers(5, 60))
    lengths = dice.integers(1, length + 1, int(dice.integers(1, 200))).tolist()
    rows = rows_of(lengths, length)
    assert sorted(chain.from_iterable(rows)) == sorted(lengths)
    assert sorted(length - sum(row) for row in rows) == one_by_one(lengths, length)


@dataclass(frozen=True)
class Lengths:
    """Examples of which only the lengths are known."""

    lengths: np.ndarray
    weights: None = None

    @property
    def counted(self) -> np.ndarray:
        return self.lengths - 1

    def __len__(self) -> int:
        return len(self.lengths)

    def example(self, number: int) -> Example:
        raise NotImplementedError


@pytest.mark.parametrize(("kind", "length", "least"), [("hellaswag", 2048, 0.97), ("chat", 4096, 0.95)])
def test_rows_of_real_lengths_are_filled(kind, length, least):
    """The lengths of HellaSwag's training rows and of 1,325 conversations, by the official tokenizer."""
    sizes, counts = json.loads((FIXTURES / "lengths.json").read_text())[kind]
    lengths = np.random.default_rng(0).permutation(np.repeat(sizes, counts)).astype(np.int32)
    batch = BatchConfig(global_size=8, length=length, pack=True)
    loader = Loader(Mixture([Lengths(lengths)], seed=0), batch, PAD)
    plans = [loader.next_rows() for _ in range(int(lengths.sum()) // length // 8)]
    tokens = sum(int(lengths[plan.numbers].sum()) for plan in plans)
    assert tokens / (len(plans) * 8 * length) >= least


def test_equal_examples_fill_rows_together():
    assert sorted(map(len, rows_of([3] * 10, 10))) == [1, 3, 3, 3]
    assert sorted(map(len, rows_of([10] * 4, 10))) == [1, 1, 1, 1]


def test_packed_rows_are_shuffled_and_keep_the_order_within():
    lengths = np.random.default_rng(0).integers(1, 20, 300)
    plans = [RowPlan.packed(np.arange(1000, 1300), lengths, 32, seed) for seed in ((1, 0), (1, 0), (1, 1))]
    assert np.array_equal(plans[0].numbers, plans[1].numbers)
    assert not np.array_equal(plans[0].numbers, plans[2].numbers)
    assert {tuple(plans[0][row]) for row in range(len(plans[0]))} == {
        tuple(plans[2][row]) for row in range(len(plans[2]))
    }
    for row in range(len(plans[0])):
        numbers = plans[0][row]
        assert (np.diff(numbers) > 0).all()
        assert lengths[numbers - 1000].sum() <= 32


def test_parts_of_plans_join_to_the_plan():
    plan = RowPlan.packed(np.arange(50), np.full(50, 3), 10, (0,))
    parts = [plan.part(0, 4), plan.part(4, 5), plan.part(5, len(plan))]
    joined = RowPlan.joined(parts)
    assert [row.tolist() for row in joined] == [row.tolist() for row in plan]
    assert [row.tolist() for row in parts[1]] == [plan[4].tolist()]
