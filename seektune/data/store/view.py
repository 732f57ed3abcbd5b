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
from seektune.data.store.index import read_column
from seektune.data.store.lock import disk_explained, locked
from seektune.data.store.prepared import PreparedExamples
from seektune.io.atomic_dir import complete_folder
from seektune.io.json_file import read_json, write_json

VIEWS = "views"
"""Folder in that of the prepared examples."""
RECORD = "view.json"
COLUMNS = {"numbers": np.int64, "starts": np.int32, "lengths": np.int32, "counted": np.int32}
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Left:
    """What a view leaves out or takes apart."""

    chosen: int
    """Examples that were chosen."""
    overlong: int
    """Of these, the ones longer than a row."""
    untaught: int
    """Parts of long ones in which nothing is taught, which are left out."""


class ExampleView:
    """Some examples of a store, or parts of them, in an order of its own."""

    def __init__(self, store: PreparedExamples, folder: Path):
        self.store = store
        self.key = folder.name
        self.left = Left(**read_json(folder / RECORD))
        self.numbers, self._starts, self.lengths, self.counted = (read_column(folder, name) for name in COLUMNS)

    def __len__(self) -> int:
        return len(self.numbers)

    def example(self, number: int) -> Example:
        """As `Examples.example`; of a part, its tokens only."""
        whole = self.store.example(int(self.numbers[number]))
        start = int(self._starts[number])
        part = slice(start, start + int(self.lengths[number]))
        cut = start or part.stop < len(whole.tokens)
        name = f"{whole.name}, tokens {start} to {part.stop - 1}" if cut else whole.name
        return Example(whole.tokens[part], whole.taught[part], name)


@dataclass(frozen=True)
class ViewChoice:
    """Which examples a view holds; everything that it depends on."""

    length: int
    """Tokens of a row."""
    overlong: OverlongChoice
    chosen_by: str = ""
    """Names the choice of examples; "" takes all."""

    @property
    def key(self) -> str:
        """Name of the view's folder."""
        text = json.dumps([self.length, self.overlong, self.chosen_by])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def view(
    store: PreparedExamples, choice: ViewChoice, choose: Callable[[], Numbers] | None = None
) -> "PreparedExamples | ExampleView":
    """The chosen examples, cut as `choice` says; the store itself if it is as it should be.

    Args:
        store: of the examples.
        choice: what is wanted; equal choices are made once.
        choose: gives the numbers of the examples in order; None for all.

    Raises:
        ValueError: one is longer than a row and `overlong` is "error", or none is left.
        OSError: the view cannot be written.
    """
    if choose is None and store.manifest.longest <= choice.length:
        return store
    folder = store.folder / VIEWS / choice.key
    if not (folder / RECORD).is_file():
        with disk_explained(store.folder), locked(store.folder):
            if not (folder / RECORD).is_file():
                _make(store, np.arange(len(store)) if choose is None else choose(), choice, folder)
    return ExampleView(store, folder)


def _refuse_overlong(store: PreparedExamples, numbers: Numbers, choice: ViewChoice) -> None:
    lengths = store.lengths[numbers]
    if not len(lengths):
        raise ValueError(f"{store.manifest.title}: no rows are left")
    count = int(np.count_nonzero(lengths > choice.length))
    none_fits = choice.overlong == "drop" and count == len(lengths)
    if count and (choice.overlong == "error" or none_fits):
        longest = int(numbers[np.argmax(lengths)])
        size = store.lengths[longest]
        other = "" if count == len(lengths) else " or --batch.overlong=drop"
        raise ValueError(
            f"{store.example(longest).name}: {size} tokens are more than batch.length {choice.length} ({count:,} of "
            f"{len(lengths):,} examples do not fit); set --batch.length={size}{other}"
        )


def _make(store: PreparedExamples, numbers: Numbers, choice: ViewChoice, folder: Path) -> None:
    _refuse_overlong(store, numbers, choice)
    lengths = store.lengths[numbers]
    long = lengths > choice.length
    columns: list[NDArray] = [numbers, np.zeros(len(numbers), np.int32), lengths, store.counted[numbers]]
    untaught = 0
    if long.any() and choice.overlong == "drop":
        columns = [column[~long] for column in columns]
    elif long.any():
        columns, untaught = _with_parts(store, columns, long, choice)
    with complete_folder(folder, replace=True) as scratch:
        for (name, dtype), column in zip(COLUMNS.items(), columns, strict=True):
            np.save(scratch / f"{name}.npy", column.astype(dtype, copy=False))
        write_json(scratch / RECORD, vars(Left(len(numbers), int(np.count_nonzero(long)), untaught)))


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
