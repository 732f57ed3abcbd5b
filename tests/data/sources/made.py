"""Files of rows of every kind, made of the same values."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from seektune.data.sources.data_file import DataFile, checked
from seektune.data.sources.find import files_of
from seektune.data.sources.row import BadRow, SourceRow

Rows = Sequence[dict[str, Any]]


def as_jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_json(rows: Rows) -> bytes:
    return json.dumps(rows, indent=1).encode()


def as_csv(rows: Rows) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: Rows) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), file, row_group_size=2)
    return file.getvalue()


def as_arrow(rows: Rows) -> bytes:
    return _ipc(rows, pa.ipc.new_file)


def as_stream(rows: Rows) -> bytes:
    return _ipc(rows, pa.ipc.new_stream)


def _ipc(rows: Rows, new: Callable[..., Any]) -> bytes:
    table = pa.Table.from_pylist(list(rows))
    file = io.BytesIO()
    with new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return file.getvalue()


WRITERS: dict[str, Callable[[Rows], bytes]] = {
    ".jsonl": as_jsonl,
    ".ndjson": as_jsonl,
    ".json": as_json,
    ".csv": as_csv,
    ".parquet": as_parquet,
    ".arrow": as_arrow,
}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
SUFFIXES = [kind + compression for kind in WRITERS for compression in COMPRESS]


def write(folder: Path, suffix: str, rows: Rows) -> Path:
    """A file of a kind, such as `.csv.gz`, with rows."""
    kind, _, compression = suffix.removeprefix(".").partition(".")
    file = folder / f"train{suffix}"
    file.write_bytes(COMPRESS[f".{compression}" if compression else ""](WRITERS[f".{kind}"](rows)))
    return file


def read(place: Path | str, split: str = "train") -> list[SourceRow | BadRow]:
    """The rows of a place, without a copy of them."""
    return [checked(row._asdict(), file) for file in files_of(str(place), split) for row in file.rows()]


def read_bytes(folder: Path, name: str, content: bytes) -> list[SourceRow | BadRow]:
    """The rows of a file with this content."""
    file = folder / name
    file.write_bytes(content)
    return [checked(row._asdict(), DataFile(str(file), "")) for row in DataFile(str(file), "").rows()]


def values(rows: Sequence[SourceRow | BadRow]) -> list[dict[str, Any]]:
    """The values of rows, none of which is bad."""
    assert [row for row in rows if isinstance(row, BadRow)] == []
    return [dict(row.values) for row in rows if isinstance(row, SourceRow)]
