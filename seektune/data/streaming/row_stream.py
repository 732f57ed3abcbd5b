"""The rows of one virtual reader of a dataset, over and over, encoded; its position can be saved."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from seektune.data.config import BatchConfig
from seektune.data.datasets.dataset import RowEncoder
from seektune.data.example import Example
from seektune.data.sources.files import FileSource
from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.streaming.fitting import fitting_parts
from seektune.data.streaming.left_out import LeftOut

if TYPE_CHECKING:
    import datasets

FILES_KEY = 2**31 + 3
"""Keeps the orders of files apart from other orders."""
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
    weighted: bool = False
    """Whether its rows have weights in the loss."""


@dataclass(frozen=True)
class ReaderNumber:
    """Which of the virtual readers of a run one is."""

    number: int
    of: int
    seed: int
    """Of the run."""


class RowStream:
    """The rows of a dataset that a virtual reader gives. In each epoch the files come in another order."""

    def __init__(self, dataset: StreamedDataset, number: int, reader: ReaderNumber):
        """`number` is that of the dataset in the recipe."""
        self.left_out = LeftOut()
        self._dataset = dataset
        self._number = number
        self._reader = reader
        self._by_file = len(dataset.source.files) % reader.of == 0
        self._epoch: int
        self._rows: datasets.IterableDataset
        self._iterator: Iterator[dict[str, Any]] | None
        self._begin(epoch=0)

    @property
    def epoch(self) -> int:
        """The epoch of the next row, from 0."""
        return self._epoch

    def state_dict(self) -> State:
        """The position."""
        return {
            "epoch": self._epoch,
            "rows": self._rows.state_dict() if self._iterator else None,
            "passed": self._passed,
            "left_out": asdict(self.left_out),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue at the position of another."""
        self._begin(state["epoch"])
        self._passed = state["passed"]
        self.left_out = LeftOut(**{**state["left_out"], "listed": [*state["left_out"]["listed"]]})
        if state["rows"] is not None:
            self._rows.load_state_dict(state["rows"])
            self._iterator = iter(self._rows)

    def examples(self, count: int, batch: BatchConfig, once: bool = False) -> list[Example]:
        """The examples of the next `count` rows, as they fit into rows of the batch; `once` ends with the epoch.

        Raises:
            ValueError: a row is bad or too long and may not be dropped, or a whole epoch has none to train on.
        """
        rows = self._take(count, once)
        found: list[Example] = []
        for (epoch, _), encoded in zip(rows, self._dataset.encoder.encode([row for _, row in rows]), strict=True):
            if isinstance(encoded, BadRow):
                self._leave_out(encoded, epoch)
                continue
            for example in encoded:
                self.left_out.overlong += epoch == 0 and len(example.tokens) > batch.length
                found += fitting_parts(example, batch)
        return found

    def _take(self, count: int, once: bool) -> list[tuple[int, SourceRow]]:
        """The next rows that training reads, each with its epoch."""
        found: list[tuple[int, SourceRow]] = []
        ends = 0
        while len(found) < count:
            record = next(self._records(), None)
            if record is None:
                self._begin(self._epoch + 1)
                ends = ends + 1
                if once:
                    break
                if ends > 1 and not found:
                    raise ValueError(self._nothing())
                continue
            own = self._by_file or self._passed % self._reader.of == self._reader.number
            self._passed += 1
            if own and (row := self._good(record)) is not None:
                found.append((self._epoch, row))
        return found

    def _nothing(self) -> str:
        return (
            f"{self._dataset.source.title}: reader {self._reader.number} of {self._reader.of} finds no rows to train on"
            "; set --data.stream=false or a smaller --batch.global_size"
        )

    def _begin(self, epoch: int) -> None:
        """Go to the beginning of an epoch; a stream that had loaded a state would begin there again."""
        key = (self._reader.seed, epoch, self._number, FILES_KEY)
        files = np.random.default_rng(key).permutation(len(self._dataset.source.files)).tolist()
        own = files[self._reader.number :: self._reader.of] if self._by_file else files
        self._rows = self._dataset.source.stream(own)
        self._epoch = epoch
        self._passed = 0
        self._iterator = None

    def _records(self) -> Iterator[dict[str, Any]]:
        if self._iterator is None:
            self._iterator = iter(self._rows)
        return self._iterator

    def _good(self, record: dict[str, Any]) -> SourceRow | None:
        row = self._dataset.source.row(record)
        if isinstance(row, BadRow):
            self._leave_out(row, self._epoch)
            return None
        return None if row.is_held_out(self._dataset.held_out_share) else row

    def _leave_out(self, row: BadRow, epoch: int) -> None:
        if self._dataset.strict:
            raise ValueError(str(row))
        if epoch == 0:
            self.left_out.add_bad(row)
