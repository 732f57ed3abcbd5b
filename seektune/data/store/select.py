"""Chooses examples by the digests of their rows: held-out rows, duplicates and limits; arrays in, numbers out.

Shapes: N examples, M examples of the other split. Examples of one row have the same digest and row number.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Digests = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Selection:
    """The chosen examples of a split."""

    ids: Numbers
    """Their numbers, ascending."""
    duplicates: int
    """Rows that repeat an earlier row of the split, whether or not they were left out."""
    also_held_out: int
    """Further rows that are in the other split too, whether or not they were left out."""
    rows: int
    """Rows that the chosen examples are of."""


def choose(
    digests: Digests, rows: Numbers, among: Mask, other: Digests, drop_duplicates: bool, limit: int | None
) -> Selection:
    """Examples of a split without duplicates, if they are to be dropped, of at most `limit` rows.

    Args:
        digests: of the rows of all examples [N].
        rows: row numbers, ascending [N].
        among: which examples may be chosen, for instance those that are held out [N].
        other: digests of the rows that are held out, for training rows; else none [M].
        drop_duplicates: whether repeated rows, and rows that are also in `other`, are left out.
        limit: of rows, spread evenly over those that remain.
    """
    allowed = among.copy()
    repeats = among & ~first_of_each(digests, rows, among)
    shared = among & ~repeats & np.isin(digests, other)
    if drop_duplicates:
        allowed &= ~(repeats | shared)
    ids = np.flatnonzero(allowed)
    chosen = ids[spread(rows[ids], limit)]
    return Selection(chosen, row_count(rows[repeats]), row_count(rows[shared]), row_count(rows[chosen]))


def held_out(digests: Digests, share: float) -> Mask:
    """Whether an example is held out [N]: by its row alone, so that rows that are added later change no other's."""
    return digests < np.uint64(int(share * 2**64))


def first_of_each(digests: Digests, rows: Numbers, among: Mask) -> Mask:
    """Whether an example is of the first row with its digest, of the examples in `among` [N]."""
    ids = np.flatnonzero(among)
    _, first, inverse = np.unique(digests[ids], return_index=True, return_inverse=True)
    found = np.zeros(len(digests), bool)
    found[ids] = rows[ids] == rows[ids[first]][inverse]
    return found


def spread(rows: Numbers, limit: int | None) -> Mask:
    """Whether an example is of one of at most `limit` rows, evenly spaced over all rows [N]: a source may be sorted."""
    different = np.unique(rows)
    count = len(different) if limit is None else min(limit, len(different))
    return np.isin(rows, different[np.arange(count) * len(different) // max(count, 1)])


def row_count(rows: Numbers) -> int:
    """Number of different rows."""
    return len(np.unique(rows))
