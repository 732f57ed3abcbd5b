"""Sources of as many rows as a benchmark asks for."""

from collections.abc import Iterator
from dataclasses import dataclass

from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.sources.source import RowSource


@dataclass(frozen=True)
class MadeRows(RowSource):
    """Rows of which only the number counts."""

    rows: int
    title: str = "made rows"
    identity: str = "made rows"

    def count(self) -> int:
        """As `RowSource.count`."""
        return self.rows

    def read(self, start: int, stop: int) -> Iterator[SourceRow | BadRow]:
        """As `RowSource.read`."""
        return (SourceRow({}, "made", i) for i in range(start, stop))


@dataclass(frozen=True, kw_only=True)
class RepeatedRows(MadeRows):
    """Rows of another source, over and over."""

    source: RowSource

    def read(self, start: int, stop: int) -> Iterator[SourceRow | BadRow]:
        """As `RowSource.read`."""
        found = list(self.source.read(0, self.source.count()))
        return (found[i % len(found)] for i in range(start, stop))
