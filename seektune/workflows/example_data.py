"""The command `data example`: writes a first dataset into a folder: made rows, or plays."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from seektune.data.datasets.shakespeare import checked, download, write_shakespeare
from seektune.data.datasets.synthetic_chat import LICENSE, write_synthetic_chat
from seektune.data.datasets.synthetic_preferences import write_synthetic_preferences
from seektune.data.datasets.synthetic_sums import write_synthetic_sums
from seektune.io.atomic_dir import complete_folder
from seektune.io.console import say
from seektune.io.text import read_text

MADE = f"made from templates ({LICENSE})"


@dataclass(frozen=True)
class ExampleRows:
    """Rows of one kind."""

    write: Callable[[Path], tuple[int, int]]
    name: str
    origin: str
    recipe: str
    """That trains on them."""


def _plays(source: Path | None) -> ExampleRows:
    """TinyShakespeare, from a file or downloaded."""
    text = download() if source is None else checked(read_text(source))
    return ExampleRows(
        lambda folder: write_shakespeare(folder, text),
        "documents",
        "TinyShakespeare (public domain)",
        "deepseek_v4_tiny_pretrain",
    )


EXAMPLES = {
    "chat": ExampleRows(write_synthetic_chat, "conversations", MADE, "deepseek_v4_tiny_chat"),
    "preference": ExampleRows(write_synthetic_preferences, "preferences", MADE, "deepseek_v4_tiny_dpo"),
    "prompt_completion": ExampleRows(write_synthetic_sums, "sums", MADE, "deepseek_v4_tiny_grpo"),
}
"""Made rows, by kind of data."""


def _rows(kind: str, source: Path | None) -> ExampleRows:
    if kind == "text":
        return _plays(source)
    if source is not None:
        raise ValueError(f"--source is for --kind text; rows of --kind {kind} are made")
    return EXAMPLES[kind]


def example_data(folder: Path, kind: str = "chat", source: Path | None = None) -> None:
    """Write `train.jsonl` and `validation.jsonl` into a new folder, and print the commands that use them.

    Args:
        folder: a new one.
        kind: of the rows: chat, preference, prompt_completion or text.
        source: a copy of the text of TinyShakespeare; None downloads it.

    Raises:
        ValueError: the folder exists and is not empty, or `source` is not that text.
        OSError: the folder cannot be written, or the text cannot be downloaded.
    """
    rows = _rows(kind, source)
    with complete_folder(folder) as scratch:
        training, held_out = rows.write(scratch)
    say(f"wrote {folder}: {training} training and {held_out} held-out {rows.name}, {rows.origin}")
    path = shlex.quote(f"--data.path={folder}")
    say(f"\nNext: seektune init {rows.recipe} recipes")
    say(f"      seektune data preview recipes/{rows.recipe}.yaml {path}")
    say(f"      seektune train recipes/{rows.recipe}.yaml {path}")
