"""Targets: files of rows of every kind."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seektune.data.sources.data_file import DataFile, checked
from seektune.data.sources.raw import RawRow
from seektune.data.sources.row import BadRow, SourceRow
from tests.fuzz.target import Read, Target, as_json, as_lines

CALL = {"name": "f", "arguments": {"city": "Rome", "days": [1, 2.5, None]}}
CHAT = [
    {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
    {"messages": [{"role": "user", "content": "“é” 😀\n"}, {"role": "assistant", "content": ""}], "tools": []},
]
PAIRS = [{"prompt": "a", "answer": 'b, "c"'}, {"prompt": "d\r\ne", "answer": ""}]


def open_file(suffix: str) -> Callable[[Path], Read]:
    """What reads a kind of file, for an empty folder."""

    def opened(folder: Path) -> Read:
        source = DataFile(str(folder / f"rows{suffix}"), "")

        def read(content: bytes) -> None:
            Path(source.path).write_bytes(content)
            for row in source.rows():
                row_or_error(row, source)

        return read

    return opened


def row_or_error(raw: RawRow, source: DataFile) -> SourceRow:
    """A row; a bad one is an error, as it is in a recipe that does not drop it."""
    row = checked(raw._asdict(), source)
    if isinstance(row, BadRow):
        raise ValueError(str(row))
    return row


def as_csv(rows: Any) -> bytes:
    """Objects as lines below a header; any other document as JSON."""
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)):
        return as_json(rows)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return text.getvalue().encode(errors="surrogatepass")


def as_parquet(rows: Any) -> bytes:
    """Objects as a .parquet file; what Arrow cannot hold as JSON."""
    file = io.BytesIO()
    table = _table(rows)
    if table is None:
        return as_json(rows)
    pq.write_table(table, file)
    return file.getvalue()


def as_arrow(rows: Any) -> bytes:
    """Objects as an Arrow file; what Arrow cannot hold as JSON."""
    file = io.BytesIO()
    table = _table(rows)
    if table is None:
        return as_json(rows)
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def _table(rows: Any) -> pa.Table | None:
    try:
        return pa.Table.from_pylist(rows)
    except (pa.ArrowException, AttributeError, TypeError, ValueError, OverflowError, IndexError):
        return None


ROW_FILES = (
    Target("jsonl", open_file(".jsonl"), (CHAT,), as_lines),
    Target("json", open_file(".json"), (CHAT, CHAT[0]), as_json),
    Target("csv", open_file(".csv"), (PAIRS,), as_csv),
    Target("parquet", open_file(".parquet"), (CHAT, PAIRS), as_parquet),
    Target("arrow", open_file(".arrow"), (CHAT, PAIRS), as_arrow),
)
