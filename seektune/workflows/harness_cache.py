"""Where answers to tasks of lm-evaluation-harness are kept until an evaluation is finished."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from seektune import __version__
from seektune.checkpoint import locate
from seektune.generate.session import LoadOptions

FOLDER = "evaluations"
"""In the user's cache."""


def answers_file(cache: Path, model: str, reading: LoadOptions, max_length: int) -> Path:
    """The file of a model's answers; another one for other files, another adapter or other numerics.

    Args:
        cache: the user's cache folder.
        model: a checkpoint folder or Hub id.
        reading: how it is loaded.
        max_length: maximum tokens that the model reads at once.

    Raises:
        ValueError, OSError: as `locate`.
    """
    folders = [locate(model), *([] if reading.adapter is None else [reading.adapter])]
    facts = {
        "version": __version__,
        "files": [list(_files(folder)) for folder in folders],
        "loaded": [reading.dtype, reading.numerics, reading.quantized],
        "max_length": max_length,
    }
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return cache / FOLDER / digest[:32]


def _files(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Path, bytes and time of change of each file."""
    for file in sorted(folder.resolve().iterdir()):
        if file.is_file():
            found = file.stat()
            yield str(file), found.st_size, found.st_mtime_ns
