"""One file of rows, here or behind a URL, plain or compressed: opened, and read row by row."""

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from seektune.data.sources.raw import READERS, SEEKING, RawRow
from seektune.data.sources.row import BadRow, SourceRow
from seektune.io.jsonl import parse_line
from seektune.io.regular_file import open_regular
from seektune.io.text import one_line

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
BUFFER = 2**20
"""Bytes that are read at a time."""
_HUB_FILE = re.compile(r"hf://datasets/(?P<id>[^@]+)@(?P<commit>[0-9a-f]{40})/(?P<path>.+)")
"""How the library `datasets` names a file of the Hub at a commit."""


@dataclass(frozen=True)
class DataFile:
    """A file of rows. Picklable."""

    path: str
    """Local path or fsspec URL."""
    stamp: str
    """Changes when the file may have changed: its size and time, or what the server states."""

    @property
    def name(self) -> str:
        """For messages."""
        found = _HUB_FILE.fullmatch(self.path)
        return f"{found['id']} {found['path']}" if found else self.path

    def rows(self) -> Iterator[RawRow]:
        """The rows, read from front to back.

        Raises:
            ValueError: the file is damaged; the message names it.
            OSError: it cannot be read.
        """
        import pyarrow as pa

        kind, compression = suffixes(self.path)
        last = "the first row"
        try:
            with _opened(self.path, compression, kind in SEEKING) as file:
                for row in READERS[kind](file):
                    yield row
                    last = f"what follows {row.where}"
        except (ValueError, pa.ArrowException) as error:
            raise ValueError(f"{self.name}: {last} cannot be read: {one_line(error)}") from None
        except OSError as error:
            raise _damaged_or_unreachable(self, last, error) from None


def suffixes(path: str) -> tuple[str, str]:
    """The suffix of a file's kind and that of its compression ("" for none)."""
    name = PurePosixPath(path.lower())
    if name.suffix in COMPRESSIONS:
        return PurePosixPath(name.stem).suffix, name.suffix
    return name.suffix, ""


def check_kind(file: DataFile) -> None:
    """Check that rows can be read from a kind of file.

    Raises:
        ValueError: they cannot.
    """
    if suffixes(file.path)[0] not in READERS:
        kinds = f"{', '.join(READERS)} files, also with {' or '.join(COMPRESSIONS)}"
        raise ValueError(f"{file.name}: rows are read from {kinds}")


def checked(raw: Mapping[str, Any], file: DataFile) -> SourceRow | BadRow:
    """The values of a `RawRow`, given as a record, or why it has none."""
    place = f"{file.name} {raw['where']}"
    if raw["text"] is None:
        return BadRow(place, raw["reason"])
    try:
        return SourceRow.of(parse_line(raw["text"]), place)
    except ValueError as error:
        return BadRow(place, str(error))


def is_url(path: str) -> bool:
    """Whether a path names another place than this machine's file system."""
    return "://" in path


def _opened(path: str, compression: str, whole: bool) -> BinaryIO:
    """The content of a file; all of it in memory if it is compressed and not read from front to back."""
    import pyarrow as pa

    file = _open_plain(path)
    if not compression:
        return file if whole else io.BufferedReader(file, BUFFER)
    stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), COMPRESSIONS[compression])
    return io.BytesIO(stream.read()) if whole else io.BufferedReader(stream, BUFFER)


def _open_plain(path: str) -> Any:
    if found := _HUB_FILE.fullmatch(path):
        import huggingface_hub

        copy = huggingface_hub.hf_hub_download(
            found["id"], found["path"], repo_type="dataset", revision=found["commit"]
        )
        return open_regular(Path(copy))
    if not is_url(path):
        return open_regular(Path(path))
    import fsspec

    return fsspec.open(path, "rb").open()


def _damaged_or_unreachable(file: DataFile, last: str, error: OSError) -> Exception:
    # pyarrow reports damaged content as OSError too, without a number
    reason = one_line(error)
    if error.errno is None and not is_url(file.path):
        return ValueError(f"{file.name}: {last} cannot be read: {reason}")
    return OSError(f"{file.name}: {last} cannot be read: {reason}")
