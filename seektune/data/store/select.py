"""Chooses examples by the digests of their rows: held-out rows, duplicates and limits; arrays in, numbers out.

Shapes: N examples, M examples of the other split, R rows. Examples of one row are neighbours and have the same digest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seektune.data.sources.row import SourceRow

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
    ids = np.flatnonzero(among)
    begins = np.diff(rows[ids], prepend=-1) != 0
    row_digests = digests[ids[begins]]
    repeats = repeated(row_digests)
    shared = ~repeats & _is_one_of(row_digests, np.unique(other))
    left = np.flatnonzero(~(repeats | shared)) if drop_duplicates else np.arange(len(row_digests))
    chosen = np.zeros(len(row_digests), bool)
    chosen[spread(left, limit)] = True
    number_of_row = np.cumsum(begins) - 1
    return Selection(ids[chosen[number_of_row]], int(repeats.sum()), int(shared.sum()), rows=int(chosen.sum()))


def choose_rows(
    rows: Sequence[SourceRow], share: float | None, is_held_out: bool, drop_duplicates: bool, limit: int | None
) -> list[SourceRow]:
    """As `choose`, of rows in memory; of the held-out share or of the rest, or of all if `share` is None."""
    digests = np.array([row.digest for row in rows], np.uint64)
    among = np.ones(len(rows), bool) if share is None else held_out(digests, share) == is_held_out
    chosen = choose(digests, np.arange(len(rows)), among, digests[:0], drop_duplicates, limit)
    return [rows[i] for i in chosen.ids]


def held_out(digests: Digests, share: float) -> Mask:
    """Whether an example is held out [N]: by its row alone, so that rows that are added later change no other's."""
    return digests < np.uint64(int(share * 2**64))


def repeated(digests: Digests) -> Mask:
    """Whether a row repeats an earlier one [R rows]."""
    ordered = np.sort(digests)
    found = np.zeros(len(digests), bool)
    # few rows are usually repeated, and only these are looked at one by one
    several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    members = np.flatnonzero(_is_one_of(digests, several))
    _, first = np.unique(digests[members], return_index=True)
    found[members] = True
    found[members[first]] = False
    return found


def spread(rows: Numbers, limit: int | None) -> Numbers:
    """At most `limit` rows, evenly spaced over all: a source may be sorted."""
    if limit is None or limit >= len(rows):
        return rows
    return rows[np.arange(limit) * len(rows) // limit]


def _is_one_of(digests: Digests, ordered: Digests) -> Mask:
    """Whether each digest is in a sorted array."""
    if not len(ordered):
        return np.zeros(len(digests), bool)
    places = np.searchsorted(ordered, digests)
    places[places == len(ordered)] = 0
    return ordered[places] == digests
