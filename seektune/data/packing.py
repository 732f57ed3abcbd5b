"""Packs examples into rows of equal length: one per row, or several that do not see each other.

Shapes: B rows, T tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch

from seektune.data.config import OverlongChoice
from seektune.data.example import Example
from seektune.sequence import IGNORE_INDEX, Batch

Row = list[Example]
"""The examples that share a row, in order."""


def fitting(examples: Sequence[Example], length: int, overlong: OverlongChoice) -> tuple[list[Example], int]:
    """The examples of at most `length` tokens, and how many were left out.

    Raises:
        ValueError: one is longer and `overlong` is "error", or all are.
    """
    assert examples, "there are no examples"
    kept = [example for example in examples if len(example.tokens) <= length]
    left_out = len(examples) - len(kept)
    longest = max(examples, key=lambda example: len(example.tokens))
    if left_out and (overlong == "error" or not kept):
        many = f"{left_out} of {len(examples)} examples do not fit"
        drop = " or --batch.overlong=drop" if kept else ""
        raise ValueError(
            f"{longest.name}: {len(longest.tokens)} tokens are more than batch.length {length} ({many}); "
            f"set --batch.length={len(longest.tokens)}{drop}"
        )
    return kept, left_out


def singly(examples: Sequence[Example]) -> list[Row]:
    """One row per example."""
    return [[example] for example in examples]


class FirstFit:
    """First-fit packing: `rows` rows of `length` tokens; an example goes into the first row with enough space."""

    def __init__(self, rows: int, length: int):
        self._rows: list[Row] = [[] for _ in range(rows)]
        self._room = np.full(rows, length)

    @property
    def rows(self) -> list[Row]:
        """The rows that are not empty."""
        return [row for row in self._rows if row]

    def put(self, example: Example) -> bool:
        """Add an example; returns False, without a change, if no row has space."""
        first = int(np.argmax(self._room >= len(example.tokens)))
        if self._room[first] < len(example.tokens):
            return False
        self._rows[first].append(example)
        self._room[first] -= len(example.tokens)
        return True


def pack(examples: Sequence[Example], length: int) -> list[Row]:
    """All examples in as many rows of `length` tokens as first-fit opens, in the given order."""
    packer = FirstFit(len(examples), length)
    for example in examples:
        assert packer.put(example), f"{example.name} is longer than a row"
    return packer.rows


def collate(rows: Sequence[Row], pad_id: int, length: int | None = None) -> Batch:
    """A micro-batch `[B, T]`, filled up to `length` tokens (None = to the longest row).

    The examples of a row are its documents 1, 2, ...; padding is told by length alone: it is document 0 with label
    -100, whatever the ids of the texts are.
    """
    width = length or max(sum(len(example.tokens) for example in row) for row in rows)
    tokens = torch.full((len(rows), width), pad_id)
    labels = torch.full_like(tokens, IGNORE_INDEX)
    documents = torch.zeros_like(tokens)
    for b, row in enumerate(rows):
        start = 0
        for number, example in enumerate(row, start=1):
            stop = start + len(example.tokens)
            tokens[b, start:stop] = torch.tensor(example.tokens)
            labels[b, start:stop] = tokens[b, start:stop].where(torch.tensor(example.taught), IGNORE_INDEX)
            documents[b, start:stop] = number
            start = stop
    return Batch(tokens, labels, documents)
