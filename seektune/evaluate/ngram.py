"""An n-gram model with Kneser-Ney smoothing: what counting alone predicts, to compare a neural model with."""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import log
from typing import TypeAlias

Gram: TypeAlias = tuple[int, ...]


class NgramModel:
    """Interpolated Kneser-Ney smoothing with one discount for each order (Ney, Essen & Kneser 1994; Chen & Goodman
    1999).

    `p_n(w | h) = max(c(h w) - D, 0) / c(h) + D kinds(h) / c(h) p_{n-1}(w | h')`, where `h'` is the history `h` without
    its first token and `kinds(h)` the number of different tokens after it. Below the highest order, `c` counts
    different tokens before a gram, not its occurrences. Order 0 is uniform.
    """

    def __init__(self, documents: Iterable[Sequence[int]], order: int, vocab_size: int):
        """Count the grams of up to `order` tokens of documents."""
        self._order = order
        self._uniform = 1 / vocab_size
        seen: list[Counter[Gram]] = [Counter() for _ in range(order)]
        for tokens in documents:
            for size in range(1, order + 1):
                seen[size - 1].update(zip(*(tokens[start:] for start in range(size)), strict=False))
        self._counts = [_left_kinds(longer) for longer in seen[1:]] + seen[-1:]
        self._discounts = [_discount(counts) for counts in self._counts]
        self._totals = [_totals(counts) for counts in self._counts]
        self._kinds = [Counter(gram[:-1] for gram in counts) for counts in self._counts]

    def losses(self, tokens: Sequence[int]) -> list[float]:
        """Negative log-likelihood in nats of each token but the first, given those before it."""
        return [
            -log(self._probability(tuple(tokens[max(0, end - self._order) : end]))) for end in range(2, len(tokens) + 1)
        ]

    def _probability(self, gram: Gram) -> float:
        """The probability of the last token after those before it."""
        found = self._uniform
        for size in range(1, len(gram) + 1):
            own = gram[-size:]
            history = own[:-1]
            total = self._totals[size - 1][history]
            if not total:
                break
            discount = self._discounts[size - 1]
            kept = max(self._counts[size - 1][own] - discount, 0.0)
            found = (kept + discount * self._kinds[size - 1][history] * found) / total
        return found


def _left_kinds(longer: Counter[Gram]) -> Counter[Gram]:
    """How many different tokens stand before each gram, from the grams that are one token longer."""
    return Counter(gram[1:] for gram in longer)


def _discount(counts: Counter[Gram]) -> float:
    """`n1 / (n1 + 2 n2)` of the numbers of grams that are counted once and twice."""
    sizes = Counter(counts.values())
    return sizes[1] / (sizes[1] + 2 * sizes[2]) if sizes[1] else 0.5


def _totals(counts: Counter[Gram]) -> Counter[Gram]:
    found: Counter[Gram] = Counter()
    for gram, count in counts.items():
        found[gram[:-1]] += count
    return found
