"""HellaSwag: rows from a folder, or from wherever they can be fetched, cleaned as lm-evaluation-harness cleans them."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seektune.data.datasets.hellaswag_sources import COLUMNS, SOURCES, RowSource, cached
from seektune.io.jsonl import read_jsonl
from seektune.io.text import check_unicode

SPLITS = ("train", "validation")
TEXTS = ("activity_label", "ctx_a", "ctx_b")


@dataclass(frozen=True)
class HellaswagRow:
    """A question: the cleaned prompt, its four cleaned endings, which of them is right, and where it was read."""

    prompt: str
    endings: tuple[str, str, str, str]
    label: int
    name: str

    @property
    def right(self) -> str:
        """The right ending."""
        return self.endings[self.label]


@dataclass(frozen=True)
class HellaswagData:
    """Both splits and, in words, where they come from."""

    train: list[HellaswagRow]
    validation: list[HellaswagRow]
    source: str


def load_hellaswag(
    path: Path | None, cache_dir: Path, note: Callable[[str], None], sources: Sequence[RowSource] = SOURCES
) -> HellaswagData:
    """Rows of the folder `path` if given, else of the cache, which the first source that answers fills.

    Args:
        path: folder as `read_split` reads it, or None.
        cache_dir: folder that keeps what was fetched, in `hellaswag/`.
        note: is told, in lines of text, what is fetched and which source is used.
        sources: where rows may come from, in order.

    Raises:
        ValueError: the folder or a row of it is not as it should be.
        OSError: no source answers, or the cache cannot be written.
    """
    if path is None:
        folder, source = fetch_hellaswag(cache_dir, note, sources)
    else:
        folder = path.expanduser()
        source = str(path)
    data = HellaswagData(read_split(folder, "train"), read_split(folder, "validation"), source)
    note(f"HellaSwag: {len(data.train):,} train and {len(data.validation):,} validation rows from {source}")
    return data


def fetch_hellaswag(
    cache_dir: Path, note: Callable[[str], None], sources: Sequence[RowSource] = SOURCES
) -> tuple[Path, str]:
    """The folder of both splits in the cache, which the first source that answers fills, and that source's name.

    Raises:
        OSError: no source answers, or the cache cannot be written.
    """
    return cached(cache_dir / "hellaswag", sources, note)


def read_rows(file: Path) -> list[HellaswagRow]:
    """Rows of one .parquet or .jsonl file, in the form of `read_split`.

    Raises:
        ValueError: naming the file and the row, if it is another kind of file or a row is not as it should be.
    """
    if file.suffix not in _READERS:
        raise ValueError(f"{file}: HellaSwag rows are read from {' and '.join(_READERS)} files")
    return [row_from_record(record, name) for name, record in _READERS[file.suffix](file)]


def read_split(folder: Path, split: str) -> list[HellaswagRow]:
    """Rows of `train` or `validation` in a folder (or its `data/`), in the order of the files.

    The files are `<split>.parquet` or `<split>.jsonl`, or shards named as on the Hub (`train-00000-of-00001.parquet`),
    in the Hub's schema; the label may be text or a number.

    Raises:
        ValueError: naming the file and the row, if a split is missing or empty, a file cannot be read, or a row has
            no four endings or an impossible label.
    """
    rows = [row for file in split_files(folder, split) for row in read_rows(file)]
    if not rows:
        raise ValueError(f"{folder}: the {split} split is empty")
    return rows


def split_files(folder: Path, split: str) -> list[Path]:
    """Files of a split, in order.

    Raises:
        ValueError: there is no such folder, no file of the split, or two kinds of file for it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; data.path must name one with {' and '.join(SPLITS)} files")
    name = re.compile(rf"{split}(-\d+-of-\d+)?\.(parquet|jsonl)")
    for place in (folder, folder / "data"):
        files = sorted(file for file in place.glob(f"{split}*") if name.fullmatch(file.name))
        if len({(file.suffix, "-of-" in file.name) for file in files}) > 1:
            raise ValueError(f"{place}: {', '.join(f.name for f in files)} hold the same split; keep one kind of file")
        if files:
            return files
    raise ValueError(f"{folder}: no {split}.parquet or {split}.jsonl (nor {split}-00000-of-00001.parquet)")


def row_from_record(record: Mapping[str, Any], name: str) -> HellaswagRow:
    """The cleaned row of one record in the Hub's schema; `name` says where it was read.

    Raises:
        ValueError: naming the row and what is wrong with it.
    """
    for column in COLUMNS:
        if column not in record:
            raise ValueError(f"{name}: no {column}; a row needs {', '.join(COLUMNS)}")
    for column in TEXTS:
        if not isinstance(record[column], str):
            raise ValueError(f"{name}: {column} must be text, not {record[column]!r}")
    endings = _endings(record["endings"], name)
    context = record["ctx_a"] + " " + record["ctx_b"].capitalize()
    prompt = clean(record["activity_label"] + ": " + context)
    try:
        check_unicode("".join([prompt, *endings]))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return HellaswagRow(prompt, endings, _label(record["label"], name), name)


def clean(text: str) -> str:
    """Text without the marks that WikiHow left in it (`[header]`, `[title]`, `[step]`), as the harness cleans it."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _endings(endings: object, name: str) -> tuple[str, str, str, str]:
    if not isinstance(endings, list) or len(endings) != 4:
        count = len(endings) if isinstance(endings, list) else "no list of"
        raise ValueError(f"{name}: a row needs four endings, this one has {count}")
    cleaned = [clean(ending) if isinstance(ending, str) else "" for ending in endings]
    if not all(cleaned):
        raise ValueError(f"{name}: ending {cleaned.index('')} is {endings[cleaned.index('')]!r}, which holds no text")
    first, second, third, fourth = cleaned
    return first, second, third, fourth


def _label(label: object, name: str) -> int:
    # a column with a gap comes out of a data frame as floats
    plain = int(label) if isinstance(label, float) and label.is_integer() else label
    if isinstance(label, bool) or str(plain) not in ("0", "1", "2", "3"):
        raise ValueError(f"{name}: label {label!r} names none of the four endings; it must be 0, 1, 2 or 3")
    return int(str(plain))


def _parquet_records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with pq.ParquetFile(file) as opened:
            columns = [column for column in COLUMNS if column in opened.schema_arrow.names]
            records = opened.read(columns=columns).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a readable parquet file ({_first_line(error)})") from error
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise ValueError(f"{file}: no column {missing[0]}; a dataset needs {', '.join(COLUMNS)}")
    for i, record in enumerate(records):
        yield f"{file} row {i}", record


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


_READERS = {".parquet": _parquet_records, ".jsonl": read_jsonl}
