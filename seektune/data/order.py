"""The order of a dataset's examples in an epoch: a permutation by seed and epoch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
MOST_LISTED = 2**22
"""Examples of which a permutation is listed; of more, each number is computed, so that no memory grows with them."""
ROUNDS = 6
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Of the mixing function of SplitMix64."""


class EpochOrder:
    """Which example is number 0, 1, 2, ... of epoch 0, then of epoch 1, ...: each once per epoch."""

    def __init__(self, count: int, seed: int, dataset: int = 0):
        """Args:
        count: number of examples.
        seed: of the run.
        dataset: number of the dataset in a mixture.
        """
        assert count, "a dataset needs examples"
        self._count = count
        self._key = (seed, dataset)
        self._listed_epoch = -1
        self._listed = np.empty(0, np.int64)

    def at(self, start: int, stop: int) -> Numbers:
        """The examples at the positions from `start` until before `stop`, counted over all epochs."""
        found = []
        while start < stop:
            epoch, offset = divmod(start, self._count)
            end = min(stop - start + offset, self._count)
            found.append(self._of_epoch(epoch, offset, end))
            start = start + end - offset
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _of_epoch(self, epoch: int, start: int, stop: int) -> Numbers:
        seed, dataset = self._key
        key = (seed, epoch, dataset) if dataset else (seed, epoch)
        if self._count > MOST_LISTED:
            return shuffled(np.arange(start, stop), self._count, key)
        if epoch != self._listed_epoch:
            self._listed = np.random.default_rng(key).permutation(self._count)
            self._listed_epoch = epoch
        return self._listed[start:stop]


def shuffled(numbers: Numbers, count: int, key: Sequence[int]) -> Numbers:
    """Where a permutation of 0 .. count - 1 puts each of `numbers`: a Feistel network, in memory of their size.

    Its domain is a power of four; numbers that it puts at `count` or above are put again until they are below.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    keys: NDArray[np.uint64] = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64).astype(np.uint64)
    found = _feistel(numbers.astype(np.uint64), half, keys)
    while (outside := found >= count).any():
        found[outside] = _feistel(found[outside], half, keys)
    return found.astype(np.int64)


def _feistel(x: NDArray[np.uint64], half: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = np.uint64((1 << half) - 1)
    left = x >> np.uint64(half)
    right = x & mask
    for key in keys:
        mixed = left ^ (_mixed(right + key) & mask)
        left = right
        right = mixed
    return (left << np.uint64(half)) | right


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MULTIPLIERS[0])
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MULTIPLIERS[1])
    return x ^ (x >> np.uint64(31))
