"""The command `data example`: writes made conversations into a folder, as a first dataset."""

import shlex
from pathlib import Path

from seektune.data.datasets.synthetic_chat import LICENSE, write_synthetic_chat
from seektune.io.atomic_dir import complete_folder
from seektune.io.console import say


def example_data(folder: Path) -> None:
    """Write `train.jsonl` and `validation.jsonl` into a new folder, and print the commands that use them.

    Raises:
        ValueError: the folder exists and is not empty.
        OSError: it cannot be written.
    """
    with complete_folder(folder) as scratch:
        training, held_out = write_synthetic_chat(scratch)
    say(f"wrote {folder}: {training} training and {held_out} held-out conversations, made from templates ({LICENSE})")
    path = shlex.quote(f"--data.path={folder}")
    say("\nNext: seektune init deepseek_v4_tiny_chat recipes")
    say(f"      seektune data preview recipes/deepseek_v4_tiny_chat.yaml {path}")
    say(f"      seektune train recipes/deepseek_v4_tiny_chat.yaml {path}")
