"""One shard of prepared examples: an Arrow IPC file, and a small record that says it is complete."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from seektune.data.datasets.dataset import RowEncoder
from seektune.data.example import Example
from seektune.data.examples import count_taught
from seektune.data.sources.row import BadRow, SourceRow
from seektune.data.sources.source import RowSource
from seektune.io.atomic import replacing, write_all
from seektune.io.json_file import read_json, write_json

BATCH = 256
"""Examples of a record batch; only a shard's last one has fewer."""
ENCODED_ROWS = 256
"""Rows that are encoded together."""
MOST_LISTED = 1000
"""Bad rows of a shard that its record lists; more are counted only."""
SCHEMA = pa.schema(
    [
        ("tokens", pa.large_list(pa.uint32())),
        ("taught", pa.large_list(pa.bool_())),
        ("name", pa.large_string()),
        ("counted", pa.int32()),
        ("weight", pa.float32()),
        ("row", pa.int64()),
        ("digest", pa.uint64()),
    ]
)
Item = TypeVar("Item")
Encoded = tuple[int, SourceRow, Example]
"""Number of the row in its source, the row, and one of its examples."""


@dataclass(frozen=True)
class ShardRecord:
    """What a shard holds; its file exists only when the shard is complete."""

    examples: int
    tokens: int
    bad_rows: int
    listed: list[list[str]]
    """Place and reason of the first bad rows."""
    weighted: bool
    """Whether an example has another weight than 1."""
    digest: str
    """SHA-256 of the tokens, of which are taught, and of the weights."""


@dataclass(frozen=True)
class ShardJob:
    """Encodes rows `start` to `stop - 1` of a source into shard `number` of a folder. Picklable."""

    source: RowSource
    encoder: RowEncoder
    folder: Path
    number: int
    start: int
    stop: int
    strict: bool
    """Whether a bad row is an error."""

    def run(self) -> ShardRecord:
        """Write the shard and its record, unless they are complete; both are whole or not there.

        Raises:
            ValueError: a row is bad and `strict`; nothing is written.
            OSError: the shard could not be written.
        """
        try:
            return read_record(self.folder, self.number)
        except (OSError, ValueError, TypeError):
            record = self._write()
            write_json(_record_path(self.folder, self.number), asdict(record))
            return record

    def _write(self) -> ShardRecord:
        bad: list[BadRow] = []
        count = 0
        tokens = 0
        weighted = False
        digest = ContentDigest()
        path = shard_path(self.folder, self.number)
        with replacing(path) as file, pa.ipc.new_file(pa.PythonFile(_Sink(file, path), mode="w"), SCHEMA) as writer:
            for examples in _batches(self._encoded(bad), BATCH):
                batch = record_batch(examples)
                count += len(examples)
                tokens += len(batch.column("tokens").values)
                weighted = weighted or bool(np.any(batch.column("weight").to_numpy() != 1))
                digest.update(batch)
                writer.write_batch(batch)
        listed = [[each.place, each.reason] for each in bad[:MOST_LISTED]]
        return ShardRecord(count, tokens, len(bad), listed, weighted, digest.hexdigest())

    def _encoded(self, bad: list[BadRow]) -> Iterator[Encoded]:
        """The examples in order; bad rows are appended to `bad`."""
        numbered = enumerate(self.source.read(self.start, self.stop), self.start)
        for rows in _batches(numbered, ENCODED_ROWS):
            good = [row for _, row in rows if isinstance(row, SourceRow)]
            encoded = iter(self.encoder.encode(good))
            for number, row in rows:
                found = row if isinstance(row, BadRow) else next(encoded)
                if isinstance(found, BadRow):
                    self._refuse(found)
                    bad.append(found)
                elif isinstance(row, SourceRow):
                    yield from ((number, row, example) for example in found)

    def _refuse(self, row: BadRow) -> None:
        if self.strict:
            raise ValueError(str(row))


class ContentDigest:
    """Digest of lengths, tokens, labels and weights, whatever the record batches."""

    def __init__(self) -> None:
        self._parts = [hashlib.sha256() for _ in range(4)]

    def update(self, batch: pa.RecordBatch) -> None:
        """Add the examples of a batch."""
        tokens = batch.column("tokens")
        taught = batch.column("taught").values.to_numpy(zero_copy_only=False)
        weights = batch.column("weight").to_numpy()
        values = (np.diff(tokens.offsets.to_numpy()), tokens.values.to_numpy(), taught, weights)
        for part, value in zip(self._parts, values, strict=True):
            part.update(value.tobytes())

    def hexdigest(self) -> str:
        """As hashlib's."""
        return hashlib.sha256("".join(part.hexdigest() for part in self._parts).encode()).hexdigest()


class _Sink:
    """What Arrow writes a file to; each write is whole or an error that names the file."""

    closed = False

    def __init__(self, file: FileIO, path: Path):
        self._file = file
        self._path = path

    def write(self, data: bytes) -> int:
        """Write all of it."""
        write_all(self._file, data, self._path)
        return len(data)

    def tell(self) -> int:
        """Bytes written."""
        return self._file.tell()

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """The file is closed by its owner."""


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"shard-{number:05}.arrow"


def read_record(folder: Path, number: int) -> ShardRecord:
    """The record of a complete shard.

    Raises:
        OSError, ValueError, TypeError: the shard is not complete.
    """
    record = ShardRecord(**read_json(_record_path(folder, number)))
    shard_path(folder, number).stat()
    return record


def record_batch(encoded: list[Encoded]) -> pa.RecordBatch:
    """Examples as Arrow columns."""
    examples = [example for _, _, example in encoded]
    offsets = np.concatenate([[0], np.cumsum([len(example.tokens) for example in examples])])
    total = int(offsets[-1])
    tokens = np.fromiter(chain.from_iterable(example.tokens for example in examples), np.uint32, total)
    taught = np.fromiter(chain.from_iterable(example.taught for example in examples), np.bool_, total)
    columns = [
        pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(tokens)),
        pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(taught)),
        pa.array([printable_name(example.name) for example in examples], pa.large_string()),
        pa.array([count_taught(example) for example in examples], pa.int32()),
        pa.array([example.weight for example in examples], pa.float32()),
        pa.array([number for number, _, _ in encoded], pa.int64()),
        pa.array([row.digest for _, row, _ in encoded], pa.uint64()),
    ]
    return pa.record_batch(columns, schema=SCHEMA)


def printable_name(name: str) -> str:
    """A name that can be stored as UTF-8, whatever a file was called."""
    return name.encode("utf-8", "backslashreplace").decode()


def _record_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05}.json"


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
