"""The command `data example`: writes a first dataset into a folder: made rows, or plays."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from seektune.data.datasets.shakespeare import write_shakespeare
from seektune.data.datasets.synthetic_chat import LICENSE, write_synthetic_chat
from seektune.data.datasets.synthetic_preferences import write_synthetic_preferences
from seektune.data.datasets.synthetic_sums import write_synthetic_sums
from seektune.io.atomic_dir import complete_folder
from seektune.io.console import say

MADE = f"made from templates ({LICENSE})"


@dataclass(frozen=True)
class ExampleRows:
    """Rows of one kind."""

    write: Callable[[Path], tuple[int, int]]
    name: str
    origin: str
    recipe: str
    """That trains on them, from random weights."""
    later: str = ""
    """A recipe that continues from the trained model, as the comments of the first one say."""


EXAMPLES = {
    "chat": ExampleRows(write_synthetic_chat, "conversations", MADE, "deepseek_v4_tiny_chat"),
    "preference": ExampleRows(write_synthetic_preferences, "preferences", MADE, "deepseek_v4_tiny_dpo"),
    "prompt_completion": ExampleRows(
        write_synthetic_sums, "sums", MADE, "deepseek_v4_tiny_sums", "deepseek_v4_tiny_grpo"
    ),
    "text": ExampleRows(write_shakespeare, "documents", "TinyShakespeare (public domain)", "deepseek_v4_tiny_pretrain"),
}
"""By kind of data."""


def example_data(folder: Path, kind: str = "chat") -> None:
    """Write `train.jsonl` and `validation.jsonl` into a new folder, and print the commands that use them.

    Args:
        folder: a new one.
        kind: of the rows: chat, preference, prompt_completion or text.

    Raises:
        ValueError: the folder exists and is not empty.
        OSError: it cannot be written.
    """
    rows = EXAMPLES[kind]
    with complete_folder(folder) as scratch:
        training, held_out = rows.write(scratch)
    say(f"wrote {folder}: {training} training and {held_out} held-out {rows.name}, {rows.origin}")
    path = shlex.quote(f"--data.path={folder}")
    say(f"\nNext: seektune init {rows.recipe} recipes")
    say(f"      seektune data preview recipes/{rows.recipe}.yaml {path}")
    say(f"      seektune train recipes/{rows.recipe}.yaml {path}")
    if rows.later:
        say(f"The recipe {rows.later} continues from such a model; the comments of {rows.recipe} have the commands.")
