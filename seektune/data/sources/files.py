"""Rows of files as a source: kept in a memory-mapped Arrow file, so that any part of them can be read."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seektune.data.sources.data_file import DataFile, checked
from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.sources.source import RowSource
from seektune.io.text import one_line

if TYPE_CHECKING:
    import datasets

VERSION = 1
"""Of the stored form of rows; a change makes older copies unused."""
ROWS_AT_ONCE = 64
"""Rows whose text is in memory at one time: a row may have megabytes."""


@dataclass(frozen=True)
class FileSource(RowSource):
    """The rows of files, in order."""

    title: str
    identity: str
    files: tuple[DataFile, ...]
    folder: Path
    """Keeps the copy of the rows."""

    @classmethod
    def of(cls, title: str, files: Sequence[DataFile], folder: Path) -> "FileSource":
        """A source of files; nothing is read yet."""
        stamps = "\n".join([f"rows {VERSION}", *(f"{file.path} {file.stamp}" for file in files)])
        return cls(title, hashlib.sha256(stamps.encode("utf-8", "surrogateescape")).hexdigest(), tuple(files), folder)

    def count(self) -> int:
        """As `RowSource.count`; the first call copies the rows."""
        return len(self._stored)

    def read(self, start: int, stop: int) -> Iterator[SourceRow | BadRow]:
        """As `RowSource.read`."""
        for first in range(start, min(stop, self.count()), ROWS_AT_ONCE):
            part = self._stored.data.fast_slice(first, min(ROWS_AT_ONCE, stop - first))
            yield from map(self.row, part.to_pylist())

    def stream(self, order: Sequence[int] | None = None) -> "datasets.IterableDataset":
        """The rows of the files without a copy, front to back; `row` reads each. Its state is exact.

        `order` are numbers of files; None for all of them as they are.
        """
        import datasets

        numbers = range(len(self.files)) if order is None else order
        return datasets.IterableDataset.from_generator(
            raw_records,
            features=_features(),
            gen_kwargs={"files": [(number, self.files[number]) for number in numbers]},
        )

    def row(self, record: dict[str, Any]) -> SourceRow | BadRow:
        """The row of a record of `stream`."""
        return checked(record, self.files[record["file"]])

    @cached_property
    def _stored(self) -> "datasets.Dataset":
        """The rows on disk.

        Raises:
            ValueError, OSError: as `DataFile.rows`; or the copy cannot be written.
        """
        import datasets

        datasets.disable_progress_bars()
        try:
            return datasets.Dataset.from_generator(
                _some_records,
                features=_features(),
                gen_kwargs={"files": list(enumerate(self.files)), "title": self.title},
                cache_dir=str(self.folder),
                fingerprint=self.identity,
            )
        except datasets.exceptions.DatasetGenerationError as error:
            cause = error.__cause__
            if isinstance(cause, ValueError | OSError) and self._names_a_file(cause):
                raise cause from None
            raise OSError(
                f"{self.folder}: the rows of {self.title} cannot be copied ({one_line(cause or error)})"
            ) from None

    def _names_a_file(self, error: Exception) -> bool:
        return any(str(error).startswith(name) for name in [self.title, *(file.name for file in self.files)])

    def __reduce__(self) -> tuple[Any, ...]:
        return FileSource, (self.title, self.identity, self.files, self.folder)


def raw_records(files: Sequence[tuple[int, DataFile]]) -> Iterator[dict[str, Any]]:
    """The rows of numbered files as JSON text."""
    for number, file in files:
        for row in file.rows():
            yield {"file": number, **row._asdict()}


def _some_records(files: Sequence[tuple[int, DataFile]], title: str) -> Iterator[dict[str, Any]]:
    records = raw_records(files)
    first = next(records, None)
    if first is None:
        raise ValueError(f"{title}: no rows")
    yield first
    yield from records


def _features() -> "datasets.Features":
    from datasets import Features, Value

    return Features(
        {
            "file": Value("int32"),
            "where": Value("string"),
            "text": Value("large_binary"),
            "reason": Value("string"),
        }
    )
