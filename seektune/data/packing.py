"""Packs examples into rows of equal length: one per row, or several that do not see each other.

Shapes: B rows, T tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from seektune.data.answers import answer_columns, document_numbers
from seektune.data.example import Example
from seektune.sequence import IGNORE_INDEX, WEIGHTS, Batch

Row = list[Example]
"""The examples that share a row, in order."""
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class RowPlan:
    """Which examples share each row; the examples of row r are `numbers[bounds[r] : bounds[r + 1]]`."""

    numbers: Numbers
    bounds: Numbers

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> Numbers:
        return self.numbers[self.bounds[row] : self.bounds[row + 1]]

    def part(self, start: int, stop: int) -> "RowPlan":
        """The rows from `start` until before `stop`."""
        bounds = self.bounds[start : stop + 1]
        return RowPlan(self.numbers[bounds[0] : bounds[-1]], bounds - bounds[0])

    @classmethod
    def joined(cls, plans: Sequence["RowPlan"]) -> "RowPlan":
        """The rows of several plans, one after another."""
        sizes = np.concatenate([np.diff(plan.bounds) for plan in plans])
        return cls(np.concatenate([plan.numbers for plan in plans]), _bounds(sizes))

    @classmethod
    def single(cls, numbers: Numbers) -> "RowPlan":
        """One row per example."""
        return cls(numbers, np.arange(len(numbers) + 1))

    @classmethod
    def packed(cls, numbers: Numbers, lengths: NDArray[np.integer], length: int, seed: Sequence[int]) -> "RowPlan":
        """Examples in as few rows of `length` tokens as best-fit finds; the rows are shuffled.

        The examples of a row stay in the given order.
        """
        row_of, count = best_fit(lengths, length)
        row_of = np.random.default_rng(seed).permutation(count)[row_of]
        return cls(numbers[np.argsort(row_of, kind="stable")], _bounds(np.bincount(row_of, minlength=count)))


def singly(examples: Sequence[Example]) -> list[Row]:
    """One row per example."""
    return [[example] for example in examples]


def best_fit(lengths: NDArray[np.integer], length: int) -> tuple[Numbers, int]:
    """Best-fit decreasing: the row of `length` tokens that holds each example, and the number of rows.

    The longest example is put first, and each goes into the row with the least space that is enough. Examples of one
    length, and rows with the same space, are handled together, so that the time depends on the number of different
    lengths.
    """
    order = np.argsort(-lengths, kind="stable")
    sizes, counts = np.unique(lengths, return_counts=True)
    rows = _OpenRows(length)
    chosen: list[int] = []
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        end = len(chosen) + count
        while len(chosen) < end:
            chosen += rows.take(size, end - len(chosen))
    row_of = np.empty(len(lengths), np.int64)
    row_of[order] = chosen
    return row_of, rows.count


class _OpenRows:
    """Rows by the space that is left in them."""

    def __init__(self, length: int):
        self.count = 0
        self._length = length
        self._by_space: dict[int, list[int]] = {}
        self._spaces = 0
        """Bit s is set if a row has space s."""

    def take(self, size: int, most: int) -> list[int]:
        """Put up to `most` examples of `size` tokens into rows with the least space that is enough; their rows."""
        fitting = self._spaces >> size
        space = size + (fitting & -fitting).bit_length() - 1 if fitting else self._length
        each = space // size
        rows = self._by_space.pop(space) if fitting else self._new(-(-most // each))
        self._spaces &= ~(1 << space)
        full = min(len(rows), most // each)
        rest = most % each if full < len(rows) else 0
        self._put(space - each * size, rows[:full])
        self._put(space - rest * size, rows[full : full + 1])
        self._put(space, rows[full + 1 :])
        return [row for row in rows[:full] for _ in range(each)] + rows[full : full + 1] * rest

    def _new(self, count: int) -> list[int]:
        self.count += count
        return list(range(self.count - count, self.count))

    def _put(self, space: int, rows: list[int]) -> None:
        if rows and space:
            self._by_space.setdefault(space, []).extend(rows)
            self._spaces |= 1 << space


def collate(rows: Sequence[Row], pad_id: int, length: int | None = None, weighted: bool = False) -> Batch:
    """A micro-batch `[B, T]`, filled up to `length` tokens (None = to the longest row).

    The examples of a row, or their answers, are its documents 1, 2, ...; padding is told by length alone: it is
    document 0 with label -100, whatever the ids of the texts are. With `weighted` the batch has a column of the
    examples' weights; with answers it has one of their pairs.
    """
    width = length or max(sum(len(example.tokens) for example in row) for row in rows)
    tokens = np.full((len(rows), width), pad_id)
    labels = np.full_like(tokens, IGNORE_INDEX)
    documents = np.zeros_like(tokens)
    weights = np.zeros(tokens.shape, np.float32)
    for b, row in enumerate(rows):
        numbers = document_numbers(row)
        documents[b, : len(numbers)] = numbers
        for place, example in _places(row):
            tokens[b, place] = example.tokens
            labels[b, place] = np.where(example.taught, tokens[b, place], IGNORE_INDEX)
            weights[b, place] = example.weight
    columns = answer_columns(rows, width)
    if weighted:
        columns[WEIGHTS] = torch.from_numpy(weights)
    return Batch(torch.from_numpy(tokens), torch.from_numpy(labels), torch.from_numpy(documents), columns)


def _places(row: Row) -> Iterator[tuple[slice, Example]]:
    start = 0
    for example in row:
        stop = start + len(example.tokens)
        yield slice(start, stop), example
        start = stop


def _bounds(sizes: NDArray[np.integer]) -> Numbers:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
