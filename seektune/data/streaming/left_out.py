"""What streams leave out or shorten: counted and listed, as part of their positions."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from seektune.data.sources.row import SHOWN, BadRow


@dataclass
class LeftOut:
    """Bad rows and long examples of a stream, each counted in the first epoch only."""

    bad_rows: int = 0
    """Rows that could not be read or encoded."""
    overlong: int = 0
    """Examples that are longer than a row of a batch, whatever became of them."""
    listed: list[list[str]] = field(default_factory=list)
    """Place and reason of the first bad rows."""

    def add_bad(self, row: BadRow) -> None:
        """Count a bad row."""
        self.bad_rows += 1
        if len(self.listed) < SHOWN:
            self.listed.append([row.place, row.reason])

    @classmethod
    def joined(cls, parts: Iterable["LeftOut"]) -> "LeftOut":
        """Those of several streams together."""
        every = list(parts)
        return cls(
            sum(part.bad_rows for part in every),
            sum(part.overlong for part in every),
            [each for part in every for each in part.listed][:SHOWN],
        )
