"""TinyShakespeare as rows of text: downloaded from the Hub, else from its origin, and checked by its digest.

1.1 MB of Shakespeare's plays, in the public domain, collected by Andrej Karpathy for char-rnn.
"""

import hashlib
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from seektune.io.console import say
from seektune.io.jsonl import as_line
from seektune.io.text import one_line

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
"""Of the whole text in UTF-8."""
HUB_REPO = "karpathy/tiny_shakespeare"
HUB_REVISION = "refs/convert/parquet"
"""The branch in which the Hub keeps the parquet files of a dataset that is a script."""
HUB_SPLITS = ("train", "validation", "test")
"""The Hub's splits, one row each, in the order of the text."""
ORIGIN = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SECONDS = 20
HELD_OUT = 10
"""Every tenth document is held out, so that training and held-out documents are of the same plays."""
DOCUMENT = 8000
"""Characters of a document, at the most; it ends where a speech does."""

Source = Callable[[], str]
"""Gives the whole text; raises an OSError or ValueError with the reason."""


def from_hub() -> str:
    """The text from the parquet files of the Hub's dataset."""
    import huggingface_hub
    import pyarrow.parquet as pq

    try:
        with tempfile.TemporaryDirectory() as folder:
            parts = []
            for split in HUB_SPLITS:
                file = huggingface_hub.hf_hub_download(
                    HUB_REPO,
                    f"default/{split}/0000.parquet",
                    repo_type="dataset",
                    revision=HUB_REVISION,
                    local_dir=folder,
                    etag_timeout=SECONDS,
                )
                parts += pq.ParquetFile(file).read().column("text").to_pylist()
            return "".join(parts)
    # what a missing network raises differs between releases of huggingface_hub
    except Exception as error:
        raise OSError(one_line(error)) from error


def from_origin() -> str:
    """The text from the repository of char-rnn."""
    with urllib.request.urlopen(ORIGIN, timeout=SECONDS) as answer:
        text: str = answer.read().decode("utf-8")
    return text


SOURCES: tuple[tuple[str, Source], ...] = ((f"the Hub ({HUB_REPO})", from_hub), (ORIGIN, from_origin))
"""The sources, in the order in which they are tried."""


def download(sources: Sequence[tuple[str, Source]] = SOURCES, sha256: str = SHA256) -> str:
    """The text from the first source that gives it.

    Raises:
        OSError: none does.
    """
    failures = []
    for name, fetch in sources:
        try:
            return checked(fetch(), sha256)
        except (OSError, ValueError) as error:
            failures.append(f"{name}: {one_line(error)}")
            say(f"TinyShakespeare: not from {failures[-1]}")
    raise OSError(
        f"TinyShakespeare cannot be downloaded ({'; '.join(failures)}); name a copy of the text with --source FILE"
    )


def checked(text: str, sha256: str = SHA256) -> str:
    """The text, if it has the digest.

    Raises:
        ValueError: it has another one.
    """
    found = hashlib.sha256(text.encode()).hexdigest()
    if found != sha256:
        raise ValueError(f"the text has sha256 {found}, not {sha256}")
    return text


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


def write_shakespeare(folder: Path, text: str) -> tuple[int, int]:
    """Write `train.jsonl` and `validation.jsonl` into an existing folder; returns the number of rows of each.

    Raises:
        OSError: a file could not be written.
    """
    rows = [{"text": document} for document in documents(text)]
    held_out = rows[HELD_OUT - 1 :: HELD_OUT]
    training = [row for place, row in enumerate(rows, start=1) if place % HELD_OUT]
    parts = {"train": training, "validation": held_out}
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(map(as_line, part)), encoding="utf-8")
    return len(training), len(held_out)
