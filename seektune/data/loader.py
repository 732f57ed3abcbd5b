"""The data loader: an endless, reproducible stream of micro-batches."""

from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np

from seektune.data.config import BatchConfig
from seektune.data.example import Example
from seektune.data.packing import FirstFit, Row, collate, pack, singly
from seektune.io.json_file import whole_number
from seektune.sequence import Batch

MOST_EXAMPLES = 2**48
"""More examples, or times through them, than any run has."""


class LoaderState(TypedDict):
    """A loader's position: the next example is number `offset` in the order of `epoch`; `examples` is their number."""

    epoch: int
    offset: int
    examples: int


class Loader:
    """Batches of examples, epoch after epoch, each shuffled by the seed and the epoch.

    A step continues where the last one stopped, into the next epoch if one ends, so that every example is used once per
    epoch.
    """

    def __init__(self, examples: Sequence[Example], batch: BatchConfig, seed: int, pad_id: int):
        """No example may be longer than `batch.length` (see `packing.fitting`)."""
        assert examples, "a loader needs examples"
        assert max(len(example.tokens) for example in examples) <= batch.length, "an example is longer than a row"
        self.examples = examples
        self._batch = batch
        self._seed = seed
        self._pad_id = pad_id
        self._epoch = 0
        self._offset = 0
        self._order = self._permutation()

    def next_step(self) -> list[Batch]:
        """The micro-batches of one optimizer step: `global_size` rows, `micro_size` in each.

        Packed rows are `length` tokens wide. Rows of one example are put together by length, longest first, and are as
        wide as the longest of their micro-batch.
        """
        return micro_batches(self.next_rows(), self._batch, self._pad_id)

    def next_rows(self) -> list[Row]:
        """The rows of one optimizer step, before they become tensors."""
        return self._packed_rows() if self._batch.pack else self._single_rows()

    def state_dict(self) -> LoaderState:
        """The position between two steps."""
        return {"epoch": self._epoch, "offset": self._offset, "examples": len(self.examples)}

    def load_state_dict(self, state: LoaderState) -> None:
        """Continue exactly at the position of another loader of the same examples, batch and seed.

        Raises:
            ValueError: the state is that of a dataset of another size, or damaged.
        """
        examples = whole_number(state, "examples", 0, MOST_EXAMPLES)
        if examples != len(self.examples):
            raise ValueError(
                f"the run to resume had {examples} training examples, this dataset gives "
                f"{len(self.examples)}; resume with the same data, batch.length and batch.overlong"
            )
        self._epoch = whole_number(state, "epoch", 0, MOST_EXAMPLES)
        self._offset = whole_number(state, "offset", 0, max(examples - 1, 0))
        self._order = self._permutation()

    def _single_rows(self) -> list[Row]:
        drawn = []
        for _ in range(self._batch.global_size):
            drawn.append(self._next())
            self._advance()
        return singly(sorted(drawn, key=lambda example: len(example.tokens), reverse=True))

    def _packed_rows(self) -> list[Row]:
        packer = FirstFit(self._batch.global_size, self._batch.length)
        # The first example that does not fit starts the next step, so that the offset alone defines the position.
        while packer.put(self._next()):
            self._advance()
        return packer.rows

    def _next(self) -> Example:
        return self.examples[self._order[self._offset]]

    def _advance(self) -> None:
        self._offset += 1
        if self._offset == len(self.examples):
            self._epoch = self._epoch + 1
            self._offset = 0
            self._order = self._permutation()

    def _permutation(self) -> list[int]:
        return np.random.default_rng((self._seed, self._epoch)).permutation(len(self.examples)).tolist()


def in_order(examples: Sequence[Example], batch: BatchConfig, pad_id: int) -> list[Batch]:
    """All examples once, in the given order, for validation; the last micro-batch may have fewer rows."""
    rows = pack(examples, batch.length) if batch.pack else singly(examples)
    return micro_batches(rows, batch, pad_id)


def micro_batches(rows: Sequence[Row], batch: BatchConfig, pad_id: int) -> list[Batch]:
    """Rows as tensors, `micro_size` of them in each."""
    width = batch.length if batch.pack else None
    return [collate(micro, pad_id, width) for micro in _slices(rows, batch.micro_size)]


def _slices(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
