"""The data loader: an endless, reproducible stream of steps, of which a process reads its own micro-batches."""

from collections.abc import Sequence
from typing import Protocol, TypedDict, overload

import numpy as np

from seektune.data.config import BatchConfig
from seektune.data.example import Example
from seektune.data.examples import Examples
from seektune.data.mixing import Mixture
from seektune.data.packing import Row, RowPlan, collate
from seektune.data.step_data import ALL, Share, StepData
from seektune.io.json_file import whole_number
from seektune.sequence import Batch

MOST_EXAMPLES = 2**48
"""More examples than any run draws."""
CHUNK = 8192
"""Examples that are packed together."""
PACK_KEY = 2**31 + 1
"""Keeps the orders of packed rows apart from those of examples."""


class LoaderState(TypedDict):
    """A loader's position."""

    position: int
    """Examples drawn before this step, or before the chunk of which the step takes rows."""
    row: int
    """Rows of that chunk that steps have taken; 0 without packing."""
    examples: list[int]
    """Number of examples of each dataset."""


class Loader:
    """Steps of `global_size` rows of a mixture. What a step holds depends on seed and position alone.

    Packed rows are made of chunks of examples; a step takes as many as it needs, and the next step takes the rest. So
    every example is used once per epoch.
    """

    def __init__(self, mixture: Mixture, batch: BatchConfig, pad_id: int, share: Share = ALL):
        """No example may be longer than `batch.length`; `share` is this process's part of every step."""
        self.mixture = mixture
        self.batch = batch
        self._pad_id = pad_id
        self._share = share
        self._position = 0
        self._row = 0
        self._chunk = min(CHUNK, len(mixture))
        self._packed: tuple[int, RowPlan] | None = None

    def next_step(self) -> StepData:
        """The data of the next optimizer step: `global_size` rows, `micro_size` in each micro-batch.

        Packed rows are `length` tokens wide. Rows of one example are put together by length, longest first, and are as
        wide as the longest of their micro-batch.
        """
        plan = self.next_rows()
        batches = self.micro_batches(plan)
        return StepData(
            batches=[batches[number] for number in range(self._share.rank, len(batches), self._share.size)],
            taught=int(self.mixture.counted(plan.numbers).sum(dtype=np.int64)),
            tokens=int(self.mixture.lengths(plan.numbers).sum(dtype=np.int64)),
            micro_batches=len(batches),
            weight=self.mixture.weight(plan.numbers) if self.mixture.weighted else None,
            examples=len(plan.numbers),
        )

    def next_rows(self) -> RowPlan:
        """The rows of the next step, of all processes; no tokens are read."""
        return self._packed_rows() if self.batch.pack else self._single_rows()

    def micro_batches(self, plan: RowPlan) -> "MicroBatches":
        """The rows of a step as tensors."""
        return MicroBatches(self.mixture, plan, self.batch, self._pad_id, self.mixture.weighted)

    def state_dict(self) -> LoaderState:
        """The position between two steps."""
        return {"position": self._position, "row": self._row, "examples": self.mixture.sizes}

    def load_state_dict(self, state: LoaderState) -> None:
        """Continue exactly at the position of another loader of the same examples, batch and seed; shares may differ.

        Raises:
            ValueError: the state is that of a dataset of another size, or damaged.
        """
        sizes = state.get("examples") if isinstance(state, dict) else None
        if not isinstance(sizes, list):
            raise ValueError(f"its examples is {sizes!r:.40}, not a list of the sizes of datasets")
        if sizes != self.mixture.sizes:
            raise ValueError(
                f"the run to resume had {_counts(sizes)} training examples, this dataset gives "
                f"{_counts(self.mixture.sizes)}; resume with the same data, batch.length and batch.overlong"
            )
        position = whole_number(state, "position", 0, MOST_EXAMPLES)
        most = len(self._rows_from(position)) - 1 if self.batch.pack else 0
        self._row = whole_number(state, "row", 0, most)
        self._position = position

    def _single_rows(self) -> RowPlan:
        drawn = self.mixture.draw(self._position, self._position + self.batch.global_size)
        self._position += self.batch.global_size
        return RowPlan.single(drawn[np.argsort(-self.mixture.lengths(drawn), kind="stable")])

    def _packed_rows(self) -> RowPlan:
        parts = []
        missing = self.batch.global_size
        while missing:
            chunk = self._rows_from(self._position)
            part = chunk.part(self._row, min(self._row + missing, len(chunk)))
            parts.append(part)
            missing = missing - len(part)
            self._row += len(part)
            if self._row == len(chunk):
                self._position += self._chunk
                self._row = 0
        return RowPlan.joined(parts)

    def _rows_from(self, position: int) -> RowPlan:
        """The packed rows of the chunk that begins at a position; the last one is kept."""
        if self._packed is None or self._packed[0] != position:
            drawn = self.mixture.draw(position, position + self._chunk)
            seed = (self.mixture.seed, position, PACK_KEY)
            plan = RowPlan.packed(drawn, self.mixture.lengths(drawn), self.batch.length, seed)
            self._packed = (position, plan)
        return self._packed[1]


class HasExamples(Protocol):
    """A dataset or a mixture."""

    def example(self, number: int) -> Example:
        """An example with its tokens."""


class MicroBatches(Sequence[Batch]):
    """Rows as tensors, `micro_size` of them in each; made when they are asked for."""

    def __init__(self, examples: HasExamples, plan: RowPlan, batch: BatchConfig, pad_id: int, weighted: bool = False):
        self._examples = examples
        self._plan = plan
        self._size = batch.micro_size
        self._width = batch.length if batch.pack else None
        self._pad_id = pad_id
        self._weighted = weighted

    def __len__(self) -> int:
        return -(-len(self._plan) // self._size)

    @overload
    def __getitem__(self, number: int) -> Batch: ...

    @overload
    def __getitem__(self, number: slice) -> list[Batch]: ...

    def __getitem__(self, number: int | slice) -> Batch | list[Batch]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        rows = range(number * self._size, min((number + 1) * self._size, len(self._plan)))
        return collate([self.row(row) for row in rows], self._pad_id, self._width, self._weighted)

    def row(self, row: int) -> Row:
        """The examples of a row."""
        return [self._examples.example(int(number)) for number in self._plan[row]]


class JoinedBatches(Sequence[Batch]):
    """The batches of several datasets, one after another."""

    def __init__(self, parts: Sequence[Sequence[Batch]]):
        self._places = [(part, number) for part in parts for number in range(len(part))]

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, number: int) -> Batch: ...

    @overload
    def __getitem__(self, number: slice) -> list[Batch]: ...

    def __getitem__(self, number: int | slice) -> Batch | list[Batch]:
        if isinstance(number, slice):
            return [part[i] for part, i in self._places[number]]
        part, place = self._places[number]
        return part[place]


def in_order(examples: Examples, batch: BatchConfig, pad_id: int) -> MicroBatches:
    """All examples once, for validation; the last micro-batch may have fewer rows.

    Rows of similar length, which need little padding, are put together.
    """
    numbers = np.argsort(examples.lengths, kind="stable")
    if batch.pack:
        plan = RowPlan.packed(numbers, examples.lengths[numbers], batch.length, (0,))
    else:
        plan = RowPlan.single(numbers)
    return MicroBatches(examples, plan, batch, pad_id)


def _counts(sizes: Sequence[object]) -> str:
    return " + ".join(f"{size!r:.20}" for size in sizes)
