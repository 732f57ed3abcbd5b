"""What is fuzzed: a reader of bytes of others, valid documents to start from, and what a proper refusal is."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seektune.cli.errors import explain
from seektune.exit_codes import USER_MISTAKE

LONGEST_REFUSAL = 2000
"""Characters; the command line prints the first 500."""
LENGTH = 8
"""Bytes of the length of a safetensors header."""

Read = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """One kind of input."""

    name: str
    open: Callable[[Path], Read]
    """Prepares an empty folder and returns what reads one input."""
    documents: tuple[Any, ...]
    """Valid inputs before they are bytes: JSON values, or texts."""
    encode: Callable[[Any], bytes]
    """The bytes of a document."""
    refusal: type[Exception] = ValueError
    """The one class of errors by which an input may be refused."""
    is_file: bool = True
    """Whether the input is a file, which a refusal names."""
    words: tuple[Any, ...] = ()
    """Values that mean something here, in addition to the parts of the documents."""

    @property
    def seeds(self) -> list[bytes]:
        """The valid inputs."""
        return [self.encode(document) for document in self.documents]

    def accepts(self, read: Read, content: bytes, folder: Path) -> bool:
        """Whether an input is read in a folder; fails if it ends otherwise than in a refusal of one printable line."""
        try:
            read(content)
        except self.refusal as error:
            check_refusal(error, self.refusal, str(folder) if self.is_file else "")
            return False
        return True


def check_refusal(error: Exception, kind: type[Exception], place: str) -> None:
    """Check that an error is our own, not that of a library below, and that its message is a line with the place."""
    message = str(error)
    assert type(error) is kind, f"{type(error).__name__}: {message[:300]}"
    assert kind is not ValueError or explain(error) == (USER_MISTAKE, message)
    assert message.strip(), "a refusal without a message"
    assert place in message, f"a refusal that does not name the file: {message[:300]}"
    assert len(message) <= LONGEST_REFUSAL, f"{len(message)} characters: {message[:300]}"
    assert message.isprintable(), f"not one printable line: {message[:300]!r}"


def as_json(value: Any) -> bytes:
    """A JSON document."""
    return json.dumps(value).encode()


def as_lines(rows: Any) -> bytes:
    """A list as JSON lines; any other value as the only line."""
    return b"".join(as_json(row) + b"\n" for row in (rows if isinstance(rows, list) else [rows]))


def framed(header: Any, data: bytes) -> bytes:
    """A safetensors file."""
    text = as_json(header)
    return len(text).to_bytes(LENGTH, "little") + text + data


def unframed(content: bytes) -> tuple[Any, bytes]:
    """Header and data of a safetensors file."""
    end = LENGTH + int.from_bytes(content[:LENGTH], "little")
    return json.loads(content[LENGTH:end]), content[end:]
