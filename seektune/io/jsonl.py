"""JSON-lines files: read with errors that name file and line, and written line by line."""

import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from seektune.io.atomic import AtomicAppender, write_atomically
from seektune.io.json_file import MOST_STEPS, whole_number
from seektune.io.regular_file import open_named, open_regular
from seektune.io.text import check_unicode

MOST_BYTES = 2**28
"""More bytes than any line has."""


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The object of each line and where it was read, `FILE line N`; empty lines are skipped.

    Raises:
        ValueError: it is missing or not a regular file, or a line is not a JSON object in UTF-8; the message begins
            with file and line.
        OSError: the file cannot be read.
    """
    with open_named(path) as file:
        for number, line in bounded_lines(file, f"{path} "):
            if line.removeprefix(BOM_UTF8).strip():
                yield f"{path} line {number}", _parsed(line, f"{path} line {number}")


def bounded_lines(file: BinaryIO, name: str = "") -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, from 1.

    Raises:
        ValueError: a line is so long that the file is of another kind; the message begins with `name` and the line.
        OSError: the file cannot be read.
    """
    for number, line in enumerate(iter(lambda: file.readline(MOST_BYTES + 1), b""), start=1):
        if len(line) > MOST_BYTES:
            raise ValueError(
                f"{name}line {number}: longer than {MOST_BYTES // 2**20} MiB; is this a file of JSON lines?"
            )
        yield number, line


def read_records(path: Path) -> list[dict[str, Any]]:
    """All objects of a file that `JsonlWriter` wrote; an unfinished last line is left out.

    Raises:
        ValueError, OSError: as `read_jsonl`; or an object has no `step`.
    """
    with open_regular(path) as lines:
        numbered = [(f"{path} line {number}", line) for number, line in enumerate(lines, start=1)]
    return [_record(line, place) for place, line in numbered if line.endswith(b"\n")]


def as_line(value: Mapping[str, Any]) -> str:
    """An object as a line."""
    return json.dumps(value, ensure_ascii=False) + "\n"


class JsonlWriter:
    """A file of JSON objects with a `step`, one per line. A context manager; errors are those of `AtomicAppender`."""

    def __init__(self, path: Path):
        self._file = AtomicAppender(path)

    def rewind(self, last_step: int) -> None:
        """Remove the lines of later steps, and one that a killed process left unfinished."""
        path = self._file.path
        lines = [as_line(record) for record in read_records(path) if record["step"] <= last_step]
        self._file.close()
        write_atomically(path, "".join(lines))
        self._file = AtomicAppender(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line."""
        self._file.write(as_line(record).encode())


def parse_line(line: bytes) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        ValueError: it is not a JSON object in UTF-8 whose texts are Unicode; the message does not name the line.
    """
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from None
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, not {text[:40]!r}")
    if "\\ud" in text or "\\uD" in text:  # only an escape can spell half of a surrogate pair
        check_unicode(as_line(value))
    return value


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except ValueError as error:  # a number of more digits than Python reads
        raise ValueError(f"not JSON that can be read ({error})") from None
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    try:
        return parse_line(line)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _record(line: bytes, place: str) -> dict[str, Any]:
    record = _parsed(line, place)
    try:
        whole_number(record, "step", 0, MOST_STEPS)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return record
