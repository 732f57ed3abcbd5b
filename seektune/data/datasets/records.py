"""Reads records of .parquet and .jsonl files, each with its row's name for error messages."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from seektune.io.jsonl import read_jsonl
from seektune.io.regular_file import check_regular

Record = dict[str, Any]
_NUMBERED = re.compile(r"-(?P<number>\d+)-of-(?P<count>\d+)\.")


def records_in(file: Path, columns: Sequence[str], kind: str) -> Iterator[tuple[str, Record]]:
    """The name and the record of each row of a file.

    Args:
        file: a .parquet or .jsonl file.
        columns: what is read of a .parquet file, which must have them all; a .jsonl file is read whole.
        kind: what the rows are, for messages.

    Raises:
        ValueError: naming the file and the row, if it is another kind of file or cannot be read.
    """
    if file.suffix not in _READERS:
        raise ValueError(f"{file}: {kind} rows are read from {' and '.join(_READERS)} files")
    return _READERS[file.suffix](file, columns)


def split_files(folder: Path, split: str) -> list[Path]:
    """Files of a split in a folder (or its `data/`), in order: `<split>.parquet`, `<split>.jsonl`, or shards named as
    on the Hub (`train-00000-of-00001.parquet`).

    Raises:
        ValueError: there is no such folder, no file of the split, two kinds of file for it, or a number is missing.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; data.path must name one with train and validation files")
    name = re.compile(rf"{split}(-\d+-of-\d+)?\.(parquet|jsonl)")
    for place in (folder, folder / "data"):
        files = sorted(file for file in place.glob(f"{split}*") if name.fullmatch(file.name))
        if len({(file.suffix, "-of-" in file.name) for file in files}) > 1:
            raise ValueError(f"{place}: {', '.join(f.name for f in files)} hold the same split; keep one kind of file")
        if files:
            _check_numbers(files)
            return files
    raise ValueError(f"{folder}: no {split}.parquet or {split}.jsonl (nor {split}-00000-of-00001.parquet)")


def _check_numbers(files: Sequence[Path]) -> None:
    """Check that of files numbered `-00000-of-00002` every number is there, and no other."""
    numbered = [(file, found) for file in files if (found := _NUMBERED.search(file.name))]
    for file, found in numbered:
        count = int(found["count"])
        if len(numbered) > count:
            raise ValueError(f"{file} is one of {count} by its name, but there are {len(numbered)}; remove old files")
        here = {int(each["number"]) for _, each in numbered}
        missing = next((number for number in range(count) if number not in here), None)
        if missing is not None:
            raise ValueError(f"{file} is one of {count} by its name, but number {missing} is missing")


def _parquet_records(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, Record]]:
    # imported here, as it is slow
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_regular(file)
    try:
        with pq.ParquetFile(file) as opened:
            found = [column for column in columns if column in opened.schema_arrow.names]
            records = opened.read(columns=found).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a readable parquet file ({_first_line(error)})") from error
    missing = [column for column in columns if column not in found]
    if missing:
        raise ValueError(f"{file}: no column {missing[0]}; a dataset needs {', '.join(columns)}")
    for i, record in enumerate(records):
        yield f"{file} row {i}", record


def _jsonl_records(file: Path, _: Sequence[str]) -> Iterator[tuple[str, Record]]:
    return read_jsonl(file)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


_READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[tuple[str, Record]]]] = {
    ".parquet": _parquet_records,
    ".jsonl": _jsonl_records,
}
