"""Lengths of examples: quantiles, a histogram, and what each row length would cut and fill."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seektune.data.packing import best_fit

Lengths = npt.NDArray[np.int32]
"""Tokens of each example, `[N]`."""
LEAST = 512
"""The shortest row length that is tried."""


@dataclass(frozen=True)
class LengthBin:
    """Examples of `start` to `stop - 1` tokens."""

    start: int
    stop: int
    examples: int


@dataclass(frozen=True)
class RowLength:
    """What a `batch.length` does to a dataset."""

    length: int
    overlong: int
    """Examples that are longer."""
    cut_tokens: int
    """Tokens beyond the end of the row, of all overlong examples."""
    fill: float
    """Share of packed rows that holds tokens, of the examples that fit."""


def histogram(lengths: Lengths) -> list[LengthBin]:
    """Bins with two edges per power of two, from the shortest to the longest example."""
    edges = np.unique([edge for power in range(31) for edge in (2**power, 3 * 2**power // 2)])
    first = int(np.searchsorted(edges, lengths.min(), side="right")) - 1
    last = int(np.searchsorted(edges, lengths.max(), side="right"))
    kept = edges[max(first, 0) : last + 1]
    counts, _ = np.histogram(lengths, bins=[*kept[:-1], kept[-1] - 0.5])
    return [
        LengthBin(int(start), int(stop), int(count))
        for start, stop, count in zip(kept[:-1], kept[1:], counts, strict=True)
    ]


def row_lengths(lengths: Lengths, own: int) -> list[RowLength]:
    """What powers of two and the recipe's own `batch.length` do, up to the first that cuts nothing."""
    tried = [LEAST]
    while tried[-1] < lengths.max():
        tried.append(2 * tried[-1])
    return [_row_length(lengths, length) for length in sorted({*tried, own})]


def fill_of(lengths: Lengths, length: int) -> float:
    """Share of rows of `length` tokens that is filled when these examples are packed."""
    if not len(lengths):
        return 0.0
    _, rows = best_fit(lengths, length)
    return int(lengths.sum()) / (rows * length)


def _row_length(lengths: Lengths, length: int) -> RowLength:
    beyond = np.maximum(lengths.astype(np.int64) - length, 0)
    fitting = lengths[lengths <= length]
    return RowLength(length, int((beyond > 0).sum()), int(beyond.sum()), fill_of(fitting, length))
