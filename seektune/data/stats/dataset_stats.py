"""The statistics of a dataset, which grow row by row."""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from seektune.data.example import Example
from seektune.data.sources.row import BadRow
from seektune.data.stats.lengths import Lengths
from seektune.data.stats.tools import ToolCounts

Tokens = npt.NDArray[Any]
KEPT = 10
"""Longest examples that are kept with their names."""


@dataclass
class DatasetStats:
    """Numbers of the rows that were read."""

    rows: int = 0
    examples: int = 0
    bad_rows: int = 0
    """Rows that could not be read or encoded, those that are held out included."""
    bad: Sequence[BadRow] = ()
    """The first of them."""
    repeated_rows: int = 0
    """Rows that repeat an earlier one, whether or not they are left out."""
    split_rows: int = 0
    """Rows that became several examples."""
    repeated: int = 0
    """Tokens at the start of an example with which the previous example of its row starts as well."""
    empty_reasoning: int = 0
    """Responses that are taught to end their reasoning at once."""
    scripts: Counter[str] = field(default_factory=Counter)
    """Letters of all texts, by script."""
    taught_scripts: Counter[str] = field(default_factory=Counter)
    """Letters of taught texts, by script."""
    tools: ToolCounts = field(default_factory=ToolCounts)
    longest: list[tuple[int, str]] = field(default_factory=list)
    """Tokens and name of the longest examples, the longest first."""
    digests: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    """Of each row with examples."""
    sizes: "array[int]" = field(default_factory=lambda: array("i"))
    """Tokens of each example."""
    counted: "array[int]" = field(default_factory=lambda: array("i"))
    """Taught tokens of each example."""

    @property
    def lengths(self) -> Lengths:
        """Tokens of each example, `[N]`."""
        return np.asarray(self.sizes, dtype=np.int32)

    def add(self, examples: Sequence[Example]) -> None:
        """Count the examples of a row."""
        self.examples += len(examples)
        self.split_rows += len(examples) > 1
        for example in examples:
            self.sizes.append(len(example.tokens))
            self.counted.append(counted_tokens(example))
            self._keep(example)
        self.repeated += shared_starts(examples)

    def _keep(self, example: Example) -> None:
        size = len(example.tokens)
        if len(self.longest) < KEPT or size > self.longest[-1][0]:
            self.longest = sorted([*self.longest, (size, example.name)], key=lambda each: -each[0])[:KEPT]


def counted_tokens(example: Example) -> int:
    """Taught tokens that the loss counts: the first of a document is never predicted."""
    return int(np.asarray(example.taught)[1:].sum())


def shared_starts(examples: Sequence[Example]) -> int:
    """Tokens at the start of each example with which the one before it starts as well, in all."""
    return sum(_shared(np.asarray(one.tokens), np.asarray(other.tokens)) for one, other in pairwise(examples))


def _shared(first: Tokens, second: Tokens) -> int:
    common = min(len(first), len(second))
    different = np.flatnonzero(first[:common] != second[:common])
    return int(different[0]) if len(different) else common
