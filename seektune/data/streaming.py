"""Streams rows that are encoded and packed on the fly, for data that does not fit a disk.

A fixed number of virtual readers is dealt out to the processes, and each makes its rows of every step. A reader's state
is the state of its streams at the beginning of a block and the rows that were taken of the block, so that a run resumes
exactly, also with another number of processes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np

from seektune.data.config import BatchConfig
from seektune.data.datasets.dataset import RowEncoder
from seektune.data.example import Example
from seektune.data.examples import ExampleList
from seektune.data.loader import MicroBatches
from seektune.data.mixing import block_shares
from seektune.data.packing import RowPlan
from seektune.data.sources.files import FileSource
from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.step_data import Share, StepData

if TYPE_CHECKING:
    import datasets

MOST_READERS = 256
BLOCK = 512
"""Rows that a reader shuffles and packs together."""
STREAM_KEY = 2**31 + 2
"""Keeps the orders of blocks apart from other orders."""
State = dict[str, Any]


@dataclass(frozen=True)
class StreamedDataset:
    """A dataset whose rows are streamed."""

    source: FileSource
    encoder: RowEncoder
    weight: float
    strict: bool
    """Whether a bad row is an error."""
    held_out_share: float
    """Rows with a digest below this share are held out; 0 for none."""


class RowStream:
    """The rows of one virtual reader of a dataset, over and over, with their position."""

    def __init__(self, dataset: StreamedDataset, reader: int, readers: int):
        self._dataset = dataset
        self._reader = reader
        self._readers = readers
        self._by_file = dataset.source.stream().num_shards % readers == 0
        self._rows: datasets.IterableDataset
        self._iterator: Iterator[dict[str, Any]] | None
        self._rewind()

    def state_dict(self) -> State:
        """The position."""
        return {"rows": self._rows.state_dict() if self._iterator else None, "passed": self._passed}

    def load_state_dict(self, state: State) -> None:
        """Continue at the position of another."""
        self._rewind()
        self._passed = state["passed"]
        if state["rows"] is not None:
            self._rows.load_state_dict(state["rows"])
            self._iterator = iter(self._rows)

    def take(self, count: int) -> list[SourceRow]:
        """The next rows that training reads.

        Raises:
            ValueError: a row is bad and may not be dropped, or a whole epoch has none to train on.
        """
        found: list[SourceRow] = []
        ends = 0
        while len(found) < count:
            record = next(self._records(), None)
            if record is None:
                self._rewind()
                ends = ends + 1
                if ends > 1 and not found:
                    raise ValueError(f"{self._dataset.source.title}: reader {self._reader} finds no rows to train on")
                continue
            own = self._by_file or self._passed % self._readers == self._reader
            self._passed += 1
            if own and (row := self._good(record)) is not None:
                found.append(row)
        return found

    def _rewind(self) -> None:
        """Go to the beginning; a stream that had loaded a state would begin there again."""
        stream = self._dataset.source.stream()
        own = stream.shard(self._readers, self._reader, contiguous=False) if self._by_file else stream
        self._rows = own
        self._passed = 0
        self._iterator = None

    def _records(self) -> Iterator[dict[str, Any]]:
        if self._iterator is None:
            self._iterator = iter(self._rows)
        return self._iterator

    def _good(self, record: dict[str, Any]) -> SourceRow | None:
        row = self._dataset.source.row(record)
        if isinstance(row, BadRow):
            if self._dataset.strict:
                raise ValueError(str(row))
            return None
        return None if row.digest < self._dataset.held_out_share * 2**64 else row


class VirtualReader:
    """Makes packed rows, or rows of one example, from blocks of the streams of all datasets."""

    def __init__(self, data: Sequence[StreamedDataset], batch: BatchConfig, seed: int, reader: int, readers: int):
        self._data = data
        self._streams = [RowStream(dataset, reader, readers) for dataset in data]
        shares = block_shares([dataset.weight for dataset in data], BLOCK)
        self._shares = shares
        self._batch = batch
        self._seed = (seed, reader)
        self._block = 0
        self._row = 0
        self._begin = self._positions()
        self._examples: ExampleList | None = None
        self._plan = RowPlan.single(np.empty(0, np.int64))

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
        """The examples of the next row."""
        if self._examples is None:
            self._load()
        while self._row == len(self._plan):
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
            part
            for dataset, stream, share in zip(self._data, self._streams, self._shares, strict=True)
            for example in encoded(dataset, stream.take(share))
            for part in fitting_parts(example, self._batch)
        ]
        self._examples = ExampleList(examples)
        key = (*self._seed, self._block, STREAM_KEY)
        order = np.random.default_rng(key).permutation(len(examples))
        packed = self._batch.pack and len(examples) > 0
        lengths = self._examples.lengths[order]
        self._plan = RowPlan.packed(order, lengths, self._batch.length, key) if packed else RowPlan.single(order)


class StreamLoader:
    """Steps of streamed rows: `BatchStream` of training. Numbers of the whole step are summed over the processes."""

    def __init__(
        self,
        data: Sequence[StreamedDataset],
        batch: BatchConfig,
        seed: int,
        pad_id: int,
        share: Share,
        total: Callable[[int, int], tuple[int, int]] = lambda taught, tokens: (taught, tokens),
        gather: Callable[[State], list[State]] = lambda own: [own],
    ):
        """`total` sums taught tokens and tokens over all shares; `gather` gives the states of all processes.

        Raises:
            ValueError: the readers cannot be dealt out to so many shares.
        """
        readers = readers_of(batch.global_size)
        if readers % share.size:
            raise ValueError(
                f"{readers} readers of streamed rows cannot be dealt out to {share.size} data-parallel groups; set "
                f"--batch.global_size to a multiple of {share.size}, such as {share.size * batch.global_size}"
            )
        self.batch = batch
        self._pad_id = pad_id
        self._readers = {
            number: VirtualReader(data, batch, seed, number, readers)
            for number in range(share.rank, readers, share.size)
        }
        self._rows_each = batch.global_size // readers
        self._total = total
        self._gather = gather
        self._count = readers

    def next_step(self) -> StepData:
        """As `Loader.next_step`; every process calls it."""
        rows = [reader.next_row() for reader in self._readers.values() for _ in range(self._rows_each)]
        if not self.batch.pack:
            rows.sort(key=lambda row: len(row[0].tokens), reverse=True)
        examples = ExampleList([example for row in rows for example in row])
        bounds = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        plan = RowPlan(np.arange(len(examples)), bounds)
        batches = MicroBatches(examples, plan, self.batch, self._pad_id)
        taught, tokens = self._total(int(examples.counted.sum()), int(examples.lengths.sum()))
        return StepData(list(batches), taught, tokens, self.batch.global_size // self.batch.micro_size)

    def state_dict(self) -> State:
        """The positions of all virtual readers; every process calls it."""
        own = {str(number): reader.state_dict() for number, reader in self._readers.items()}
        return {"readers": {number: state for part in self._gather(own) for number, state in part.items()}}

    def load_state_dict(self, state: State) -> None:
        """Continue exactly at the position of another loader of the same data, batch and seed; shares may differ.

        Raises:
            ValueError: the state is that of other data, or damaged.
        """
        readers = state.get("readers") if isinstance(state, dict) else None
        if not isinstance(readers, dict) or len(readers) != self._count:
            raise ValueError(f"it is not the state of {self._count} readers of streamed rows")
        try:
            for number, reader in self._readers.items():
                reader.load_state_dict(readers[str(number)])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"the position of its streams is damaged, or of other data ({error!r:.80})") from None


def readers_of(global_size: int) -> int:
    """Number of virtual readers: it depends on the recipe alone."""
    return gcd(global_size, MOST_READERS)


def encoded(dataset: StreamedDataset, rows: Sequence[SourceRow]) -> Iterator[Example]:
    """The examples of rows.

    Raises:
        ValueError: a row is bad and may not be dropped.
    """
    for found in dataset.encoder.encode(rows):
        if isinstance(found, BadRow):
            if dataset.strict:
                raise ValueError(str(found))
        else:
            yield from found


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
            f"{example.name}: {size} tokens are more than batch.length {batch.length}; set --batch.length={size} or "
            "--batch.overlong=drop"
        )
    starts = {"drop": range(0), "cut": range(1), "split": range(0, size, batch.length)}[batch.overlong]
    for start in starts:
        part = slice(start, start + batch.length)
        if np.any(np.asarray(example.taught)[part][1:]):
            yield Example(example.tokens[part], example.taught[part], example.name)
