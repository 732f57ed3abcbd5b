"""TinyShakespeare as rows of text: 1.1 MB of Shakespeare's plays, in the public domain, which come with the package.

Andrej Karpathy collected them for char-rnn.
"""

import gzip
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from seektune.io.jsonl import as_line

HELD_OUT = 10
"""Every tenth document is held out, so that training and held-out documents are of the same plays."""
DOCUMENT = 8000
"""Characters of a document, at the most; it ends where a speech does."""


def tiny_shakespeare() -> str:
    """The whole text."""
    packed = resources.files(__package__).joinpath("tinyshakespeare.txt.gz").read_bytes()
    return gzip.decompress(packed).decode("utf-8")


def documents(text: str, longest: int = DOCUMENT) -> Iterator[str]:
    """Speeches in order, as many in a document as fit; joined by empty lines they are the text."""
    speeches: list[str] = []
    size = 0
    for speech in text.split("\n\n"):
        if speeches and size + len(speech) > longest:
            yield "\n\n".join(speeches)
            speeches = []
            size = 0
        speeches.append(speech)
        size += len(speech) + 2
    yield "\n\n".join(speeches)


def write_shakespeare(folder: Path, text: str | None = None) -> tuple[int, int]:
    """Write `train.jsonl` and `validation.jsonl` into an existing folder; returns the number of rows of each.

    `text` takes the place of TinyShakespeare.

    Raises:
        OSError: a file could not be written.
    """
    rows = [{"text": document} for document in documents(tiny_shakespeare() if text is None else text)]
    held_out = rows[HELD_OUT - 1 :: HELD_OUT]
    training = [row for place, row in enumerate(rows, start=1) if place % HELD_OUT]
    parts = {"train": training, "validation": held_out}
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(map(as_line, part)), encoding="utf-8")
    return len(training), len(held_out)
