"""Log-probabilities of documents by a reference model that were computed once, found by what the documents hold.

Shapes: B rows, T tokens, U documents.
"""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seektune.model.objective import TokenLogprobs
from seektune.parallel.reference import with_reference
from seektune.sequence import IGNORE_INDEX, Batch, SequenceLayout


class DocumentSums(NamedTuple):
    """Documents by the digest of their tokens and labels, and the sums of their taught tokens' log-probabilities."""

    digests: NDArray[np.uint64]
    sums: NDArray[np.float32]

    @classmethod
    def of(cls, batch: Batch, logprobs_BT: Tensor) -> "DocumentSums":
        """Of the documents of a batch in which something is taught, from values at the positions that predict."""
        tokens = TokenLogprobs.given(logprobs_BT.cpu(), batch)
        sums_U = tokens.document_sums(tokens.values_N)
        found = list(taught_documents(batch))
        digests = np.array([each.digest for each in found], np.uint64)
        return cls(digests, sums_U[[each.number for each in found]].float().numpy())

    @classmethod
    def joined(cls, parts: list["DocumentSums"]) -> "DocumentSums":
        """Those of several batches, by ascending digest; a document that is there twice is kept once."""
        digests = np.concatenate([part.digests for part in parts])
        unique, first = np.unique(digests, return_index=True)
        return cls(unique, np.concatenate([part.sums for part in parts])[first])


class CachedReference:
    """A `ReferenceModel` that looks up sums; it is filled before it is used."""

    def __init__(self) -> None:
        self.found = DocumentSums(np.empty(0, np.uint64), np.empty(0, np.float32))

    def own(self, batch: Batch) -> Batch:
        """As `ReferenceModel`: the sum of each document is at its first taught token, and 0 elsewhere.

        Raises:
            ValueError: a document was not there when the sums were computed.
        """
        reference_BT = torch.zeros(batch.tokens.shape)
        for each in taught_documents(batch):
            place = int(np.searchsorted(self.found.digests, np.uint64(each.digest)))
            if place == len(self.found.digests) or self.found.digests[place] != each.digest:
                raise ValueError(
                    "the reference's log-probability of a document is missing: the data is not what it was when they "
                    "were computed; begin a new run"
                )
            reference_BT[each.row, each.places[0]] = float(self.found.sums[place])
        return with_reference(batch, reference_BT)

    def shared(self, batch: Batch) -> Batch:
        """As `own`."""
        return self.own(batch)


class TaughtDocument(NamedTuple):
    """A document of a batch."""

    row: int
    number: int
    """As in `SequenceLayout.numbered`."""
    places: Tensor
    """Places of its taught tokens in the row, int64 `[N]`."""
    digest: int
    """Of its tokens, and of which of them are taught."""


def taught_documents(batch: Batch) -> Iterator[TaughtDocument]:
    """The documents of which something is taught, in order."""
    layout = SequenceLayout.from_documents(batch.documents)
    numbers_BT, _ = layout.numbered()
    counted_BT = torch.nn.functional.pad(batch.counted(), (1, 0))
    for row, counted_T in enumerate(counted_BT):
        places = counted_T.nonzero().squeeze(1)
        numbers_N = numbers_BT[row, places]
        for number in numbers_N.unique().tolist():
            own = places[numbers_N == number]
            yield TaughtDocument(row, number, own, _digest(batch, row, numbers_BT[row] == number))


def _digest(batch: Batch, row: int, own_T: Tensor) -> int:
    tokens = batch.tokens[row, own_T]
    taught = batch.labels[row, own_T] != IGNORE_INDEX
    data = tokens.numpy().tobytes() + taught.numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
