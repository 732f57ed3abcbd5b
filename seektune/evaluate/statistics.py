"""Statistics of scores: 95 % intervals by bootstrap, and tests for differences between two models.

Shapes: N questions (or windows of text), R resamples.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
SEED = 0
"""Fixed, so that the same outcomes give the same interval."""
LEVELS = (0.025, 0.975)
DRAWS = 100_000
"""Random numbers that exist at a time; for all resamples of many items together they would take gigabytes."""


@dataclass(frozen=True)
class Estimate:
    """A result with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of_share(cls, outcomes: Sequence[bool]) -> "Estimate":
        """The share of right answers.

        Resampling N outcomes of which k are right gives Binomial(N, k/N) right ones, which is drawn directly. Where all
        outcomes are the same, resampling knows no spread; the interval is then the exact one for k = 0 or N
        (Clopper and Pearson 1934).
        """
        n = len(outcomes)
        right = sum(outcomes)
        if right in (0, n):
            return cls._all_same(right == n, n)
        shares_R = np.random.default_rng(SEED).binomial(n, right / n, RESAMPLES) / n
        return cls(right / n, *_bounds(shares_R))

    @classmethod
    def of_ratio(cls, tops: Sequence[float], bottoms: Sequence[float]) -> "Estimate":
        """The sum of `tops` over the sum of `bottoms`; their pairs are resampled."""
        top_N = np.asarray(tops, float)
        bottom_N = np.asarray(bottoms, float)
        return cls(math.fsum(tops) / math.fsum(bottoms), *_bounds(_ratios(top_N, bottom_N)))

    @classmethod
    def of_parts(cls, right: Sequence[int], sizes: Sequence[int]) -> "Estimate":
        """The share of right parts of all items, such as tokens of rows; items are resampled.

        Parts of an item may be right together. So where all parts are the same, each item counts once in the exact
        interval of `of_share`.
        """
        if sum(right) in (0, sum(sizes)):
            return cls._all_same(sum(right) > 0, len(sizes))
        return cls.of_ratio(right, sizes)

    @classmethod
    def _all_same(cls, right: bool, n: int) -> "Estimate":
        reach = 1 - LEVELS[0] ** (1 / n)
        return cls(1.0, 1 - reach, 1.0) if right else cls(0.0, 0.0, reach)

    def map(self, rising: Callable[[float], float]) -> "Estimate":
        """The estimate of an increasing function of the value."""
        return Estimate(rising(self.value), rising(self.low), rising(self.high))


@dataclass(frozen=True)
class Change:
    """The difference of a second model to a first on the same items."""

    difference: float
    """Second minus first."""
    low: float
    """95 % interval of the difference, from a paired bootstrap."""
    high: float
    p_value: float
    """Two-sided p-value: the probability of a difference at least this large if the models were equally good."""

    @classmethod
    def of_shares(cls, first: Sequence[bool], second: Sequence[bool]) -> "Change":
        """Of right answers; the p-value is from McNemar's exact test."""
        assert len(first) == len(second), "two models must answer the same questions"
        gains_N = np.asarray(second, float) - np.asarray(first, float)
        won = int((gains_N > 0).sum())
        lost = int((gains_N < 0).sum())
        low, high = _bounds(_ratios(gains_N, np.ones_like(gains_N)))
        return cls((won - lost) / len(gains_N), low, high, sign_test(won, lost))

    @classmethod
    def of_ratios(cls, first: Sequence[float], second: Sequence[float], bottoms: Sequence[float]) -> "Change":
        """Of two sums over the same sum; the p-value is from random signs of the items' differences (Fisher's test)."""
        assert len(first) == len(second) == len(bottoms), "two models must read the same texts"
        gains_N = np.asarray(second, float) - np.asarray(first, float)
        low, high = _bounds(_ratios(gains_N, np.asarray(bottoms, float)))
        return cls(math.fsum(gains_N) / math.fsum(bottoms), low, high, sign_flip_test(gains_N))


def sign_flip_test(gains_N: NDArray[np.float64]) -> float:
    """Two-sided p-value of a sum under random signs of its terms; at least 1 / (R + 1)."""
    generator = np.random.default_rng(SEED)
    # tolerance: sums of the same terms may differ in their last digits
    reached = abs(gains_N.sum()) * (1 - 1e-9)
    flipped = (generator.choice((-1.0, 1.0), size=shape) @ gains_N for shape in _parts(len(gains_N)))
    return (1 + sum(int((abs(sums) >= reached).sum()) for sums in flipped)) / (RESAMPLES + 1)


def sign_test(won: int, lost: int) -> float:
    """Two-sided p-value of `won` heads and `lost` tails of a fair coin, exact."""
    n = won + lost
    ways = 1
    total = 0
    for k in range(min(won, lost) + 1):
        total += ways
        ways = ways * (n - k) // (k + 1)
    return min(1.0, 2 * total / 2**n)


def _ratios(top_N: NDArray[np.float64], bottom_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ratio of sums in each of R resamples `[R]`."""
    generator = np.random.default_rng(SEED)
    draws = (generator.integers(len(top_N), size=shape) for shape in _parts(len(top_N)))
    return np.concatenate([top_N[draw].sum(axis=1) / bottom_N[draw].sum(axis=1) for draw in draws])


def _parts(n: int) -> Iterator[tuple[int, int]]:
    """Shapes of the parts in which R resamples of n items are drawn."""
    size = max(1, DRAWS // n)
    for start in range(0, RESAMPLES, size):
        yield min(size, RESAMPLES - start), n


def _bounds(values_R: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values_R, LEVELS)
    return float(low), float(high)
