"""The manifest of prepared examples: which rows and encoder they are of, and their sizes; it closes a preparation."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from seektune.data.store.shard import MOST_LISTED, ShardRecord
from seektune.io.json_file import read_json, write_json

MANIFEST = "manifest.json"
VERSION = 2
"""Of the form of shards and index; another version's folders are not read."""


@dataclass(frozen=True)
class Manifest:
    """What prepared examples are."""

    key: str
    title: str
    """Where the rows come from."""
    rows: int
    """Rows of the source."""
    tokens: int
    longest: int
    """Tokens of the longest example."""
    shards: list[int]
    """Number of examples of each shard."""
    bad_rows: int
    listed: list[list[str]]
    """Place and reason of the first bad rows."""
    weighted: bool
    """Whether an example has another weight than 1."""
    digest: str
    """SHA-256 of all tokens and of which are taught, in order."""

    @property
    def examples(self) -> int:
        """Number of examples."""
        return sum(self.shards)

    @classmethod
    def of(cls, key: str, title: str, rows: int, longest: int, records: Sequence[ShardRecord]) -> "Manifest":
        """The manifest of complete shards."""
        digests = "".join(record.digest for record in records)
        return cls(
            key=key,
            title=title,
            rows=rows,
            tokens=sum(record.tokens for record in records),
            longest=longest,
            shards=[record.examples for record in records],
            bad_rows=sum(record.bad_rows for record in records),
            listed=[each for record in records for each in record.listed][:MOST_LISTED],
            weighted=any(record.weighted for record in records),
            digest=hashlib.sha256(digests.encode()).hexdigest(),
        )

    def write(self, folder: Path) -> None:
        """Write it, as the last file of a preparation."""
        write_json(folder / MANIFEST, asdict(self))


def read_manifest(folder: Path, key: str) -> Manifest | None:
    """The manifest of a folder; None without a complete preparation of this key."""
    try:
        found = Manifest(**read_json(folder / MANIFEST))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.key == key else None


def key_of(source: str, encoder: str) -> str:
    """The key of prepared examples, from the identities of rows and encoder."""
    return hashlib.sha256(json.dumps([VERSION, source, encoder]).encode()).hexdigest()
