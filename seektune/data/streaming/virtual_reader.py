"""A virtual reader: makes rows of batches from blocks of the streams of all datasets."""

from collections.abc import Sequence

import numpy as np

from seektune.data.config import BatchConfig
from seektune.data.example import Example
from seektune.data.examples import ExampleList
from seektune.data.mixing import block_shares
from seektune.data.packing import RowPlan
from seektune.data.streaming.left_out import LeftOut
from seektune.data.streaming.row_stream import ReaderNumber, RowStream, State, StreamedDataset

BLOCK = 512
"""Rows that a reader shuffles and packs together."""
MOST_EMPTY = 8
"""Epochs without an example after which one of several readers gives up: in each it has other files or rows."""
STREAM_KEY = 2**31 + 2
"""Keeps the orders of blocks apart from other orders."""


class VirtualReader:
    """Makes packed rows, or rows of one example. In each block every dataset has its share of the rows, by weight.

    Its state is the positions of its streams at the beginning of the block and the rows that were taken of it.
    """

    def __init__(self, data: Sequence[StreamedDataset], batch: BatchConfig, reader: ReaderNumber):
        self._streams = [RowStream(dataset, number, reader) for number, dataset in enumerate(data)]
        self._shares = block_shares([dataset.weight for dataset in data], BLOCK)
        self._batch = batch
        self._seed = (reader.seed, reader.number)
        self._most_empty = min(reader.of, MOST_EMPTY)
        self._block = 0
        self._row = 0
        self._begin = self._positions()
        self._examples: ExampleList | None = None
        self._plan = RowPlan.single(np.empty(0, np.int64))

    @property
    def left_out(self) -> LeftOut:
        """What its streams left out so far."""
        return LeftOut.joined(stream.left_out for stream in self._streams)

    def state_dict(self) -> State:
        """The position between two rows."""
        return {"block": self._block, "row": self._row, "streams": self._begin}

    def load_state_dict(self, state: State) -> None:
        """Continue at the position of another; the block is read again."""
        self._block = state["block"]
        self._row = state["row"]
        self._begin = state["streams"]
        for stream, position in zip(self._streams, state["streams"], strict=True):
            stream.load_state_dict(position)
        self._examples = None

    def next_row(self) -> list[Example]:
        """The examples of the next row.

        Raises:
            ValueError: as `RowStream.examples`; or every dataset gives no example for so long that none is left.
        """
        if self._examples is None:
            self._load()
        epochs = [stream.epoch for stream in self._streams]
        while self._row == len(self._plan):
            if all(
                stream.epoch > begun + self._most_empty for stream, begun in zip(self._streams, epochs, strict=True)
            ):
                raise ValueError(
                    "streamed data: a whole epoch gave nothing to train on; see batch.overlong and data.on_bad_row"
                )
            self._block += 1
            self._row = 0
            self._begin = self._positions()
            self._load()
        assert self._examples is not None
        row = [self._examples.example(int(number)) for number in self._plan[self._row]]
        self._row += 1
        return row

    def _positions(self) -> list[State]:
        return [stream.state_dict() for stream in self._streams]

    def _load(self) -> None:
        examples = [
            example
            for stream, share in zip(self._streams, self._shares, strict=True)
            for example in stream.examples(share, self._batch)
        ]
        self._examples = ExampleList(examples)
        key = (*self._seed, self._block, STREAM_KEY)
        order = np.random.default_rng(key).permutation(len(examples))
        packed = self._batch.pack and len(examples) > 0
        lengths = self._examples.lengths[order]
        self._plan = RowPlan.packed(order, lengths, self._batch.length, key) if packed else RowPlan.single(order)
