"""Rows of files of each kind as JSON text, as yet unchecked: .jsonl, .json, .csv, .parquet and .arrow."""

import csv
import io
import itertools
import json
import sys
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from seektune.data.sources.arrow_values import plain_rows
from seektune.io.jsonl import bounded_lines, parse_json

ARROW_ROWS = 1000
"""Rows that are decoded at a time."""


class RawRow(NamedTuple):
    """A row as JSON text, or why it has none."""

    where: str
    """In its file: `line 3`, `row 3`."""
    text: bytes | None
    reason: str | None = None


def jsonl_rows(file: BinaryIO) -> Iterator[RawRow]:
    """One row for each line that is not empty; lines are counted from 1.

    Raises:
        ValueError: a line is longer than any row.
    """
    for number, line in bounded_lines(file):
        if line.removeprefix(BOM_UTF8).strip():
            yield RawRow(f"line {number}", line)


def json_rows(file: BinaryIO) -> Iterator[RawRow]:
    """The objects of a list, a single object, or JSON lines in spite of the name; objects are counted from 0.

    Raises:
        ValueError: a list is not JSON.
    """
    content = file.read()
    if not content.removeprefix(BOM_UTF8).lstrip().startswith(b"["):
        return _object_or_lines(content)
    try:
        values = parse_json(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from None
    return _numbered(values)


def csv_rows(file: BinaryIO) -> Iterator[RawRow]:
    """One row for each line below the header; every cell is text. A row is named by the line where it starts.

    Raises:
        ValueError: two columns have one name, or a quotation mark is not closed.
    """
    # the limit of the library, 128 KiB for a cell, is smaller than conversations are
    csv.field_size_limit(sys.maxsize)
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        if repeated := [name for name, count in Counter(header).items() if count > 1]:
            raise ValueError(f"two columns are called {repeated[0]!r:.40}")
        line = reader.line_num
        for cells in reader:
            if cells:
                yield _csv_row(header, cells, f"line {line + 1}")
            line = reader.line_num
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: not CSV ({error})") from None


def parquet_rows(file: BinaryIO) -> Iterator[RawRow]:
    """Rows of a .parquet file, counted from 0."""
    import pyarrow.parquet as pq

    return _numbered(itertools.chain.from_iterable(map(plain_rows, pq.ParquetFile(file).iter_batches(ARROW_ROWS))))


def arrow_rows(file: BinaryIO) -> Iterator[RawRow]:
    """Rows of an Arrow file or stream, counted from 0."""
    import pyarrow as pa

    if file.read(len(b"ARROW1")) == b"ARROW1":
        reader = pa.ipc.open_file(file)
        batches: Iterable[Any] = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        file.seek(0)
        batches = pa.ipc.open_stream(file)
    return _numbered(itertools.chain.from_iterable(map(plain_rows, batches)))


READERS: dict[str, Callable[[BinaryIO], Iterator[RawRow]]] = {
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
    ".arrow": arrow_rows,
}
"""By suffix, without that of a compression."""
SEEKING = (".parquet", ".arrow")
"""Kinds that are not read from front to back."""


def _object_or_lines(content: bytes) -> Iterator[RawRow]:
    try:
        value = parse_json(content.decode("utf-8-sig"))
    except ValueError:
        return jsonl_rows(io.BytesIO(content))
    return _numbered([value])


def _numbered(values: Iterable[Any]) -> Iterator[RawRow]:
    # in ASCII, because half of a surrogate pair, which a later check names, has no other form; values that JSON has no
    # form for are rare kinds of Arrow's
    return (RawRow(f"row {number}", json.dumps(value, default=str).encode()) for number, value in enumerate(values))


def _csv_row(header: list[str], cells: list[str], where: str) -> RawRow:
    if len(cells) != len(header):
        return RawRow(where, None, f"{len(cells)} cells, but the header has {len(header)}")
    text = json.dumps(dict(zip(header, cells, strict=True)), ensure_ascii=False)
    try:
        return RawRow(where, text.encode())
    except UnicodeEncodeError:
        return RawRow(where, None, "not UTF-8 text")
