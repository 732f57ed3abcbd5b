"""A mixture of datasets by weight: which example comes at each position is a function of the seed alone."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from seektune.data.example import Example
from seektune.data.examples import Column, Examples
from seektune.data.order import EpochOrder

Numbers = NDArray[np.int64]
BLOCK = 4096
"""Positions in which every dataset has exactly its share, in an order of their own."""
BLOCK_KEY = 2**31
"""Keeps the orders of blocks apart from those of examples."""


class Mixture:
    """Several datasets as one: examples are numbered through all of them, and drawn by weight.

    A dataset that ends begins its next epoch, whatever the others do.
    """

    def __init__(self, datasets: Sequence[Examples], seed: int, weights: Sequence[float] | None = None):
        """`weights` are relative shares of the examples drawn; None for equal ones."""
        self.datasets = datasets
        self.seed = seed
        self.sizes = [len(dataset) for dataset in datasets]
        assert all(self.sizes), "a loader needs examples"
        self._firsts = np.concatenate([[0], np.cumsum(self.sizes)])
        self._orders = [EpochOrder(size, seed, number) for number, size in enumerate(self.sizes)]
        self._shares = block_shares(weights or [1.0] * len(datasets))
        self._last: tuple[int, Numbers] = (-1, np.empty(0, np.int64))
        self.weighted = any(dataset.weights is not None for dataset in datasets)
        """Whether examples have weights in the loss."""

    def __len__(self) -> int:
        return sum(self.sizes)

    def draw(self, start: int, stop: int) -> Numbers:
        """The examples at the positions from `start` until before `stop`."""
        if len(self.datasets) == 1:
            return self._orders[0].at(start, stop)
        blocks = range(start // BLOCK, -(-stop // BLOCK))
        first = blocks.start * BLOCK
        return np.concatenate([self._block(block) for block in blocks])[start - first : stop - first]

    def lengths(self, numbers: Numbers) -> Column:
        """Tokens of examples."""
        return self._column(numbers, lambda dataset: dataset.lengths)

    def counted(self, numbers: Numbers) -> Column:
        """Tokens of examples that the loss counts."""
        return self._column(numbers, lambda dataset: dataset.counted)

    def weight(self, numbers: Numbers) -> float:
        """Sum of the weights of the tokens of examples that the loss counts."""
        weights = np.empty(len(numbers), np.float64)
        for dataset, here, own in self._by_dataset(numbers):
            weights[here] = 1.0 if dataset.weights is None else dataset.weights[own]
        return float((weights * self.counted(numbers)).sum())

    def example(self, number: int) -> Example:
        """An example with its tokens."""
        dataset = self.dataset_of(number)
        return self.datasets[dataset].example(int(number - self._firsts[dataset]))

    def dataset_of(self, number: int) -> int:
        """The place of an example's dataset among all."""
        return int(np.searchsorted(self._firsts, number, side="right")) - 1

    def _block(self, block: int) -> Numbers:
        """The examples of a block; the last one is kept."""
        if self._last[0] != block:
            self._last = (block, self._drawn(block))
        return self._last[1]

    def _drawn(self, block: int) -> Numbers:
        drawn = np.concatenate(
            [
                first + order.at(block * share, (block + 1) * share)
                for first, order, share in zip(self._firsts[:-1], self._orders, self._shares, strict=True)
            ]
        )
        which = np.repeat(np.arange(len(self._shares)), self._shares)
        which = np.random.default_rng((self.seed, block, BLOCK_KEY)).permutation(which)
        # the k-th place of a dataset in the block gets its k-th example
        found = np.empty_like(drawn)
        found[np.argsort(which, kind="stable")] = drawn
        return found

    def _column(self, numbers: Numbers, column: Callable[[Examples], Column]) -> Column:
        if len(self.datasets) == 1:
            return column(self.datasets[0])[numbers]
        found = np.empty(len(numbers), np.int32)
        for dataset, here, own in self._by_dataset(numbers):
            found[here] = column(dataset)[own]
        return found

    def _by_dataset(self, numbers: Numbers) -> Iterator[tuple[Examples, NDArray[np.bool_], Numbers]]:
        """Each dataset, which of the examples are its own, and their numbers in it."""
        which = np.searchsorted(self._firsts, numbers, side="right") - 1
        for number, dataset in enumerate(self.datasets):
            here = which == number
            yield dataset, here, numbers[here] - self._firsts[number]


def block_shares(weights: Sequence[float], size: int = BLOCK) -> list[int]:
    """Positions of a block of `size` for each dataset: rounded by the largest remainders, at least one each."""
    # the sum of huge weights is infinite
    relative = np.array(weights) if np.isfinite(sum(weights)) else np.array(weights) / max(weights)
    exact = relative / sum(relative) * (size - len(weights))
    shares = np.floor(exact).astype(int)
    left = size - len(weights) - int(shares.sum())
    shares[np.argsort(shares - exact, kind="stable")[:left]] += 1
    return [int(share) + 1 for share in shares]
