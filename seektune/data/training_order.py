"""Finds a row of training by its number, with what training reads of it."""

from dataclasses import dataclass

from seektune.data.answers import documents_of
from seektune.data.loader import Loader
from seektune.data.packing import Row
from seektune.sequence import IGNORE_INDEX


@dataclass(frozen=True)
class RowPlace:
    """A row and its position in training."""

    step: int
    micro_batch: int
    documents: Row
    tokens: list[int]
    taught: list[bool]
    """Whether the loss counts each token."""


def find_row(loader: Loader, row: int) -> RowPlace:
    """Row number `row` (from 0) in training order, of a loader that has not begun."""
    size = loader.batch.global_size
    for _ in range(row // size):
        loader.next_rows()
    batches = loader.micro_batches(loader.next_rows())
    micro, place = divmod(row % size, loader.batch.micro_size)
    batch = batches[micro]
    documents = batch.documents[place].tolist()
    labels = batch.labels[place].tolist()
    # the first token of a document is never predicted
    taught = [
        label != IGNORE_INDEX and i > 0 and documents[i - 1] == documents[i] != 0 for i, label in enumerate(labels)
    ]
    parts = [document for example in batches.row(row % size) for document in documents_of(example)]
    return RowPlace(row // size + 1, micro + 1, parts, batch.tokens[place].tolist(), taught)
