"""Files of a run folder: lines that are there whole or not at all, and files that get their name when complete."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self


class WholeAppends:
    """A file to which pieces are added, each on disk as soon as written, wholly or not at all.

    Raises:
        OSError: a piece could not be written; the pieces before it stay.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Add a piece."""
        end = self._file.tell()
        try:
            # an unbuffered write that reaches the end of the disk may stop short before it fails
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            self._file.truncate(end)
            raise cannot_write(self.path, error) from error

    def close(self) -> None:
        """No more pieces."""
        self._file.close()


class JsonLines:
    """A file of JSON objects with a `step`, one a line. A context manager; errors are those of `WholeAppends`."""

    def __init__(self, path: Path):
        self._file = WholeAppends(path)

    def rewind(self, last_step: int) -> None:
        """Remove the lines of later steps, and one that a killed process left unfinished."""
        path = self._file.path
        kept = [line for line in read_lines(path) if line["step"] <= last_step]
        self._file.close()
        write_whole(path, b"".join(_encoded(line) for line in kept))
        self._file = WholeAppends(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line."""
        self._file.write(_encoded(line))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All objects of a JSON-lines file; an unfinished last line is left out."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears under its name only when complete; it replaces an older one.

    Raises:
        OSError: it could not be written; nothing is left behind.
    """
    scratch = None
    try:
        descriptor, scratch = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException as error:
        if scratch is not None:
            Path(scratch).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


def cannot_write(path: Path, error: OSError) -> OSError:
    """The failure as one helpful sentence."""
    reason = error.strerror or str(error)
    return OSError(f"could not write {path}: {reason}; what the run had written before stays in {path.parent}")
