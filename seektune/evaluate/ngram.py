"""N-gram models with Kneser-Ney or Witten-Bell smoothing: what counting alone predicts, to compare a model with."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.int64]
Numbers: TypeAlias = NDArray[np.float64]
NONE = -1
"""Number of a gram that was not counted."""


@dataclass(frozen=True)
class Grams:
    """The different grams of one length; a gram's number is its place in `keys`."""

    keys: Integers
    """Sorted: the number of the gram without its last token, times the vocabulary, plus that token."""
    counts: Integers
    """Occurrences."""
    endings: Integers
    """Number of the gram without its first token."""
    vocab_size: int

    def numbers(self, histories: Integers, tokens: Integers) -> Integers:
        """Numbers of the grams of histories, by their numbers, and a token after each."""
        keys = histories * self.vocab_size + tokens
        places = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where((histories != NONE) & (self.keys[places] == keys), places, NONE)

    @property
    def histories(self) -> Integers:
        """Number of the gram without its last token."""
        return self.keys // self.vocab_size


def count_grams(documents: Iterable[Sequence[int]], order: int, vocab_size: int) -> list[Grams]:
    """The grams of up to `order` tokens in documents, by length; at least one document has a token."""
    given = [np.asarray(tokens, dtype=np.int64) for tokens in documents if len(tokens)]
    text = np.concatenate(given)
    starts = np.cumsum([0, *map(len, given[:-1])])
    # of the grams one token shorter that end at each token, and before it
    ending = histories = np.zeros(len(text), dtype=np.int64)
    found: list[Grams] = []
    while len(found) < order and (histories != NONE).any():
        places = np.flatnonzero(histories != NONE)
        keys, first, numbers, counts = np.unique(
            histories[places] * vocab_size + text[places], return_index=True, return_inverse=True, return_counts=True
        )
        found.append(Grams(keys, counts, ending[places[first]], vocab_size))
        ending = np.full(len(text), NONE)
        ending[places] = numbers
        histories = np.concatenate([[NONE], ending[:-1]])
        histories[starts] = NONE
    return found


@dataclass(frozen=True)
class _Order:
    """The share of one length in the probabilities of a token after a history."""

    kept: Numbers
    """Of each gram."""
    shared: Numbers
    """Of each history: what multiplies the probability after the shorter history."""
    total: Numbers
    """Of each history: what both are divided by; 0 where the history says nothing."""


class NgramModel:
    """Interpolated: `p_n(w | h) = (kept(h w) + shared(h) p_{n-1}(w | h')) / total(h)`.

    `h'` is the history `h` without its first token; order 0 is uniform.
    """

    def __init__(self, grams: Sequence[Grams], orders: Sequence[_Order]):
        self._grams = grams
        self._orders = orders

    @classmethod
    def kneser_ney(cls, grams: Sequence[Grams]) -> "NgramModel":
        """With one discount for each order (Ney, Essen & Kneser 1994; Chen & Goodman 1999).

        Below the highest order, different tokens before a gram are counted, not its occurrences.
        """
        kinds = [np.bincount(longer.endings, minlength=len(own.keys)) for own, longer in pairwise(grams)]
        counts = [*kinds, grams[-1].counts]
        return cls(grams, [_discounted(own, each) for own, each in zip(_sized(grams), counts, strict=True)])

    @classmethod
    def witten_bell(cls, grams: Sequence[Grams]) -> "NgramModel":
        """With as much for the shorter history as there are different tokens after the history (Witten & Bell 1991)."""
        return cls(grams, [_witten_bell(each) for each in _sized(grams)])

    def losses(self, tokens: Sequence[int]) -> list[float]:
        """Negative log-likelihood in nats of each token but the first, given those before it."""
        text = np.asarray(tokens, dtype=np.int64)
        found = np.full(len(text), 1 / self._grams[0].vocab_size)
        histories = np.zeros(len(text), dtype=np.int64)
        for grams, order in zip(self._grams, self._orders, strict=True):
            numbers = grams.numbers(histories, text)
            total = np.where(histories != NONE, order.total[histories], 0)
            kept = np.where(numbers != NONE, order.kept[numbers], 0)
            with np.errstate(divide="ignore", invalid="ignore"):
                longer = (kept + order.shared[histories] * found) / total
            found = np.where(total > 0, longer, found)
            histories = np.concatenate([[NONE], numbers[:-1]])
        return (-np.log(found[1:])).tolist()


def _sized(grams: Sequence[Grams]) -> Iterator[tuple[Grams, int]]:
    """The grams of each length, and the number of histories."""
    return zip(grams, [1, *(len(each.keys) for each in grams)], strict=False)


def _discounted(own: tuple[Grams, int], counts: Integers) -> _Order:
    grams, size = own
    once = int((counts == 1).sum())
    twice = int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once else 0.5
    kinds = _summed(grams, counts > 0, size)
    return _Order(np.maximum(counts - discount, 0.0), discount * kinds, _summed(grams, counts, size))


def _witten_bell(own: tuple[Grams, int]) -> _Order:
    grams, size = own
    kinds = _summed(grams, grams.counts > 0, size)
    return _Order(grams.counts.astype(np.float64), kinds, _summed(grams, grams.counts, size) + kinds)


def _summed(grams: Grams, values: NDArray[Any], size: int) -> Numbers:
    """The sum of the values of the grams after each history."""
    return np.bincount(grams.histories, weights=values, minlength=size).astype(np.float64)
