"""Fits examples into rows as `batch.overlong` says, one by one."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from seektune.data.config import BatchConfig
from seektune.data.example import Example


def fitting_parts(example: Example, batch: BatchConfig) -> Iterator[Example]:
    """The example, or the parts that `batch.overlong` leaves of a long one.

    Raises:
        ValueError: it is longer than a row and may not be.
    """
    size = len(example.tokens)
    if size <= batch.length:
        yield example
        return
    if batch.overlong == "error":
        raise ValueError(
            f"{example.name}: {size} tokens are more than batch.length {batch.length}; set --batch.length={size} "
            "or more, or --batch.overlong=drop, cut or split"
        )
    starts = {"drop": range(0), "cut": range(1), "split": range(0, size, batch.length)}[batch.overlong]
    for start in starts:
        part = slice(start, start + batch.length)
        if np.any(np.asarray(example.taught)[part][1:]):
            yield replace(example, tokens=example.tokens[part], taught=example.taught[part])
