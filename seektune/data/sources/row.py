"""A row of a source, or why it could not be read."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seektune.io.console import counted
from seektune.io.text import on_one_line

SHOWN = 5
"""Rows that are listed of those that were left out."""


@dataclass(frozen=True)
class SourceRow:
    """The columns of a row that are not null, and where it was read."""

    values: Mapping[str, Any]
    place: str
    """For messages: `train.jsonl line 3`, `x.parquet row 3`, `org/name train row 3`."""
    digest: int
    """64-bit digest of the values: chooses held-out rows and finds duplicates."""

    @classmethod
    def of(cls, values: Mapping[str, Any], place: str) -> "SourceRow":
        """A row with its digest; a column that is null is left out, as kinds of file differ in whether they have it."""
        present = {name: value for name, value in values.items() if value is not None}
        return cls(present, place, digest_of(present))

    def is_held_out(self, share: float | None) -> bool:
        """Whether it is in the held-out share of a source; None holds nothing out."""
        return share is not None and self.digest < share * 2**64


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read or encoded."""

    place: str
    reason: str
    """One line, without the place."""

    def __str__(self) -> str:
        """One line for an error or a list of dropped rows."""
        return on_one_line(f"{self.place}: {self.reason}")


def dropped(bad: Sequence[BadRow], count: int) -> str:
    """A line that lists rows which were left out, of which the first ones are given."""
    shown = "; ".join(map(str, bad[:SHOWN]))
    more = f"; and {count - SHOWN:,} more" if count > SHOWN else ""
    return f"{counted(count, 'row')} left out: {shown}{more}"


def digest_of(values: Mapping[str, Any]) -> int:
    """64-bit digest of the canonical JSON of a row, in which keys are sorted."""
    text = json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
