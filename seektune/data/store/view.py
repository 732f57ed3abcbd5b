"""Views of prepared examples: chosen ones, and parts of those that are longer than a row; memory-mapped too."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seektune.data.config import OverlongChoice
from seektune.data.example import Example
from seektune.data.examples import Weights
from seektune.data.store.index import read_column
from seektune.data.store.lock import disk_explained, locked
from seektune.data.store.pair_parts import parts_of_pairs
from seektune.data.store.prepared import PreparedExamples
from seektune.data.store.select import Numbers, Selection
from seektune.io.atomic_dir import complete_folder
from seektune.io.json_file import read_json, write_json

VIEWS = "views"
"""Folder in that of the prepared examples."""
RECORD = "view.json"
COLUMNS = {"numbers": np.int64, "starts": np.int32, "lengths": np.int32, "counted": np.int32}


@dataclass(frozen=True)
class ViewReport:
    """What a view holds, leaves out and takes apart."""

    rows: int
    """Rows that were chosen."""
    examples: int
    """Examples of these rows."""
    duplicates: int
    """Rows that repeat an earlier one, left out or not."""
    also_held_out: int
    """Training rows that are held out too, left out or not."""
    overlong: int
    """Chosen examples that are longer than a row."""
    untaught: int
    """Parts of long examples in which nothing is taught, which are left out."""
    is_whole: bool
    """Whether the view is the store as it is, so that it has no columns of its own."""


class ExampleView:
    """Some examples of a store, or parts of them, in an order of its own."""

    def __init__(self, store: PreparedExamples, folder: Path):
        self.store = store
        self.key = folder.name
        self.numbers, self._starts, self.lengths, self.counted = (read_column(folder, name) for name in COLUMNS)
        self.weights: Weights | None = None if store.weights is None else store.weights[self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def example(self, number: int) -> Example:
        """As `Examples.example`; of a part, its tokens only."""
        whole = self.store.example(int(self.numbers[number]))
        start = int(self._starts[number])
        part = slice(start, start + int(self.lengths[number]))
        cut = start or part.stop < len(whole.tokens)
        name = f"{whole.name}, tokens {start} to {part.stop - 1}" if cut else whole.name
        return Example(whole.tokens[part], whole.taught[part], name, whole.weight)


@dataclass(frozen=True)
class ViewChoice:
    """Which examples a view holds; everything that it depends on."""

    length: int
    """Tokens of a row."""
    overlong: OverlongChoice
    chosen_by: str
    """Names all that the choice of examples depends on."""
    paired: bool = False
    """Whether two neighbours are a pair, which shares a row."""

    @property
    def key(self) -> str:
        """Name of the view's folder."""
        text = json.dumps([self.length, self.overlong, self.chosen_by, *(["paired"] if self.paired else [])])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def view(
    store: PreparedExamples, choice: ViewChoice, select: Callable[[], Selection]
) -> tuple[PreparedExamples | ExampleView, ViewReport]:
    """The chosen examples, cut as `choice` says, and what was left out; made once for equal choices.

    Args:
        store: of the examples.
        choice: what is wanted.
        select: chooses the examples.

    Raises:
        ValueError: one is longer than a row and `overlong` is "error", or none is left.
        OSError: the view cannot be written.
    """
    folder = store.folder / VIEWS / choice.key
    if not (folder / RECORD).is_file():
        with disk_explained(store.folder), locked(store.folder):
            if not (folder / RECORD).is_file():
                _make(store, select(), choice, folder)
    report = ViewReport(**read_json(folder / RECORD))
    return store if report.is_whole else ExampleView(store, folder), report


def _refuse_overlong(store: PreparedExamples, numbers: Numbers, choice: ViewChoice) -> None:
    lengths = _sizes(store.lengths[numbers], choice)
    if not len(lengths):
        raise ValueError(f"{store.manifest.title}: no rows are left")
    count = int(np.count_nonzero(lengths > choice.length))
    none_fits = choice.overlong == "drop" and count == len(lengths)
    assert not (choice.paired and choice.overlong == "split"), "recipes that take pairs apart are refused"
    if count and (choice.overlong == "error" or none_fits):
        place = int(np.argmax(lengths))
        longest = int(numbers[place * (2 if choice.paired else 1)])
        size = lengths[place]
        both = " of both answers" if choice.paired else ""
        ways = [] if count == len(lengths) else ["drop"]
        ways += ["cut"] if choice.paired else ["cut", "split"]
        others = " or ".join(filter(None, [", ".join(ways[:-1]), ways[-1]]))
        raise ValueError(
            f"{store.example(longest).name}: {size} tokens{both} are more than batch.length {choice.length} (it is the "
            f"longest of {count:,} examples that do not fit, of {len(lengths):,}); set --batch.length={size} or "
            f"--batch.overlong={others}"
        )


def _sizes(lengths: NDArray[np.int32], choice: ViewChoice) -> NDArray[np.int32]:
    """Tokens of what shares a row."""
    return lengths.reshape(-1, 2).sum(axis=1, dtype=np.int32) if choice.paired else lengths


def _make(store: PreparedExamples, selection: Selection, choice: ViewChoice, folder: Path) -> None:
    numbers = selection.ids
    _refuse_overlong(store, numbers, choice)
    lengths = store.lengths[numbers]
    sizes = _sizes(lengths, choice)
    over = sizes > choice.length
    long = np.repeat(over, len(numbers) // len(sizes))
    columns: list[NDArray] = [numbers, np.zeros(len(numbers), np.int32), lengths, store.counted[numbers]]
    untaught = 0
    if long.any() and choice.overlong == "drop":
        columns = [column[~long] for column in columns]
    elif long.any() and choice.paired:
        columns, untaught = parts_of_pairs(store, columns, choice.length)
    elif long.any():
        columns, untaught = _with_parts(store, columns, long, choice)
    report = ViewReport(
        rows=selection.rows,
        examples=len(sizes),
        duplicates=selection.duplicates,
        also_held_out=selection.also_held_out,
        overlong=int(np.count_nonzero(over)),
        untaught=untaught,
        is_whole=len(numbers) == len(store) and not long.any(),
    )
    with complete_folder(folder, replace=True) as scratch:
        for (name, dtype), column in zip(COLUMNS.items(), columns, strict=True):
            if not report.is_whole:
                np.save(scratch / f"{name}.npy", column.astype(dtype, copy=False))
        write_json(scratch / RECORD, vars(report))


def _with_parts(
    store: PreparedExamples, columns: list[NDArray], long: NDArray[np.bool_], choice: ViewChoice
) -> tuple[list[NDArray], int]:
    """The columns with parts in place of long examples, and the number of parts in which nothing is taught."""
    places = np.flatnonzero(long)
    parts = np.array([(place, *part) for place in places for part in _parts(store, columns[0][place], choice)])
    kept = parts[parts[:, 3] > 0]
    if not len(kept) and long.all():
        raise ValueError(f"{store.manifest.title}: no example has a taught token within batch.length {choice.length}")
    order = np.argsort(np.concatenate([np.flatnonzero(~long), kept[:, 0]]), kind="stable")
    of_parts = [columns[0][kept[:, 0]], kept[:, 1], kept[:, 2], kept[:, 3]]
    joined = [np.concatenate([column[~long], part])[order] for column, part in zip(columns, of_parts, strict=True)]
    return joined, len(parts) - len(kept)


def _parts(store: PreparedExamples, number: int, choice: ViewChoice) -> Iterator[tuple[int, int, int]]:
    """Start, length and counted tokens of the parts of an example: the first one, or all."""
    taught = np.asarray(store.example(int(number)).taught)
    for start in range(0, len(taught), choice.length):
        part = taught[start : start + choice.length]
        yield start, len(part), int(np.count_nonzero(part[1:]))
        if choice.overlong == "cut":
            return
