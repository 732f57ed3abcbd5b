"""Cuts the answers of pairs so that both fit into a row.

Shapes: P pairs.
"""

import numpy as np
from numpy.typing import NDArray

from seektune.data.store.prepared import PreparedExamples


def parts_of_pairs(store: PreparedExamples, columns: list[NDArray], length: int) -> tuple[list[NDArray], int]:
    """Columns of a view with both answers of each pair within `length` tokens, and how many pairs are left out.

    The longer answer is cut first, down to half of the row. Pairs of which an answer has no taught token left are out.

    Args:
        store: of the examples.
        columns: numbers, starts, lengths and counted tokens; two neighbours are a pair.
        length: the most tokens of a row.

    Raises:
        ValueError: no pair is left.
    """
    numbers, starts, lengths, counted = columns
    cut = pair_lengths(lengths.reshape(-1, 2), length).reshape(-1)
    counted = np.array(counted)
    for place in np.flatnonzero(cut < lengths):
        taught = np.asarray(store.example(int(numbers[place])).taught)
        counted[place] = np.count_nonzero(taught[1 : cut[place]])
    kept = np.repeat((counted.reshape(-1, 2) > 0).all(axis=1), 2)
    if not kept.any():
        raise ValueError(f"{store.manifest.title}: no pair has a taught token of each answer within {length} tokens")
    return [column[kept] for column in (numbers, starts, cut, counted)], int(np.count_nonzero(~kept)) // 2


def pair_lengths(lengths_P2: NDArray[np.integer], length: int) -> NDArray[np.int32]:
    """Tokens that are kept of each answer, `[P, 2]`, `length` of both together at most."""
    most_P2 = np.maximum(length // 2, length - lengths_P2[:, ::-1])
    return np.minimum(lengths_P2, most_P2).astype(np.int32)
