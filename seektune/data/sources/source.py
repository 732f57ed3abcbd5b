"""The interface of row sources, and rows that are already in memory."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from seektune.data.sources.row import BadRow, SourceRow


class RowSource(ABC):
    """Rows in a fixed order. Picklable, so that other processes can read a part of them."""

    title: str
    """Where the rows come from, for messages."""
    identity: str
    """Changes when the rows may have changed: names, sizes and times of files, or a revision of the Hub."""

    @abstractmethod
    def count(self) -> int:
        """Number of rows, known without reading their values."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Iterator[SourceRow | BadRow]:
        """Rows `start` to `stop - 1` in order, one result for each.

        Raises:
            ValueError: a file is damaged; the message names it.
            OSError: a file cannot be read.
        """


@dataclass(frozen=True)
class RowList(RowSource):
    """Rows in memory."""

    title: str
    identity: str
    rows: Sequence[SourceRow | BadRow]

    def count(self) -> int:
        """As `RowSource.count`."""
        return len(self.rows)

    def read(self, start: int, stop: int) -> Iterator[SourceRow | BadRow]:
        """As `RowSource.read`."""
        return iter(self.rows[start:stop])
