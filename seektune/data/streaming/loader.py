"""The loader of streamed rows.

A fixed number of virtual readers is dealt out to the processes, and each makes its rows of every step; so a run resumes
exactly, also with another number of processes.
"""

from collections.abc import Callable, Sequence
from math import gcd

import numpy as np

from seektune.data.config import BatchConfig
from seektune.data.examples import ExampleList
from seektune.data.loader import MicroBatches
from seektune.data.packing import Row, RowPlan
from seektune.data.step_data import Share, StepData
from seektune.data.streaming.left_out import LeftOut
from seektune.data.streaming.row_stream import ReaderNumber, State, StreamedDataset
from seektune.data.streaming.virtual_reader import VirtualReader

MOST_READERS = 256


class StreamLoader:
    """Steps of streamed rows: `BatchStream` of training. Numbers of the whole step are summed over the processes."""

    def __init__(
        self,
        data: Sequence[StreamedDataset],
        batch: BatchConfig,
        seed: int,
        pad_id: int,
        share: Share,
        total: Callable[[list[float]], list[float]] = lambda own: own,
        gather: Callable[[State], list[State]] = lambda own: [own],
    ):
        """`total` sums numbers over all shares; `gather` gives the states of all processes.

        Raises:
            ValueError: the number of readers is not a multiple of the number of shares.
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
            number: VirtualReader(data, batch, ReaderNumber(number, readers, seed))
            for number in range(share.rank, readers, share.size)
        }
        self._rows_each = batch.global_size // readers
        self._weighted = any(dataset.weighted for dataset in data)
        self._total = total
        self._gather = gather
        self._count = readers

    def next_step(self) -> StepData:
        """As `Loader.next_step`; every process calls it."""
        rows = [reader.next_row() for reader in self._readers.values() for _ in range(self._rows_each)]
        if not self.batch.pack:
            rows.sort(key=lambda row: len(row[0].tokens), reverse=True)
        examples = _in_order(rows)
        plan = RowPlan(np.arange(len(examples)), np.concatenate([[0], np.cumsum([len(row) for row in rows])]))
        left_out = LeftOut.joined(reader.left_out for reader in self._readers.values())
        sums = self._total(
            [
                float(examples.counted.sum()),
                float(examples.lengths.sum()),
                _weight(examples),
                float(left_out.bad_rows),
                float(left_out.overlong),
            ]
        )
        return StepData(
            batches=list(MicroBatches(examples, plan, self.batch, self._pad_id, self._weighted)),
            taught=int(sums[0]),
            tokens=int(sums[1]),
            micro_batches=self.batch.global_size // self.batch.micro_size,
            weight=sums[2] if self._weighted else None,
            left_out={"bad_rows": int(sums[3]), "overlong_examples": int(sums[4])},
        )

    def left_out(self) -> LeftOut:
        """What was left out so far, of all processes; every process calls it."""
        own = {str(number): reader.left_out for number, reader in self._readers.items()}
        by_reader = {number: found for part in self._gather(own) for number, found in part.items()}
        return LeftOut.joined(by_reader[str(number)] for number in range(self._count))

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


def _in_order(rows: Sequence[Row]) -> ExampleList:
    """The examples of rows, one row after another."""
    return ExampleList([example for row in rows for example in row])


def _weight(examples: ExampleList) -> float:
    """Sum of the weights of the tokens that the loss counts."""
    weights = np.ones(len(examples)) if examples.weights is None else examples.weights.astype(np.float64)
    return float((weights * examples.counted).sum())
