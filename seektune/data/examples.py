"""Examples by number, with the columns that a loader plans with; in memory here, from disk in `data.store`."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from seektune.data.example import Example

Column = NDArray[np.int32]
Weights = NDArray[np.float32]


class Examples(Protocol):
    """Examples 0 .. len - 1; the columns are read without reading any tokens."""

    @property
    def lengths(self) -> Column:
        """Tokens of each example."""

    @property
    def counted(self) -> Column:
        """Tokens that the loss counts of each example: the taught ones, without its first, which is not predicted."""

    @property
    def weights(self) -> Weights | None:
        """Weight of each example; None if all are 1."""

    def __len__(self) -> int:
        """Number of examples."""

    def example(self, number: int) -> Example:
        """An example with its tokens."""


class ExampleList:
    """Examples in memory, such as a model's own answers."""

    def __init__(self, examples: Sequence[Example]):
        self._examples = examples
        self.lengths: Column = np.array([len(each.tokens) for each in examples], np.int32)
        self.counted: Column = np.array([count_taught(each) for each in examples], np.int32)
        weights = np.array([each.weight for each in examples], np.float32)
        self.weights: Weights | None = weights if np.any(weights != 1) else None

    def __len__(self) -> int:
        return len(self._examples)

    def example(self, number: int) -> Example:
        """As `Examples.example`."""
        return self._examples[number]


def count_taught(example: Example) -> int:
    """Tokens of an example that the loss counts; the first of a document is never predicted."""
    return int(np.count_nonzero(np.asarray(example.taught, np.bool_)[1:]))
