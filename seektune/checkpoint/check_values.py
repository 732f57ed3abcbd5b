"""Search the values of a checkpoint folder for what no model can use, before hours of work with them."""

import re
from collections.abc import Callable

from torch import Tensor

from seektune.checkpoint.formats import TABLES
from seektune.checkpoint.lowbit import is_finite
from seektune.checkpoint.source import FolderSource


def check_values(source: FolderSource, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Read every tensor of a folder, one at a time.

    Args:
        source: the folder.
        progress: called with the bytes checked so far and in all.

    Raises:
        ValueError: a tensor holds NaN or infinity, or a table lists an expert that does not exist.
        OSError: a file cannot be read.
    """
    names = [name for name, _ in source.shapes()]
    total = sum(source.size(name) for name in names)
    done = 0
    for name in names:
        stored = source.stored(name)
        if not is_finite(stored):
            raise ValueError(f"{source.files.where(name)} holds NaN or infinity; the file is damaged")
        if re.search(TABLES, name):
            _check_table(source, name, stored.weight)
        done += source.size(name)
        progress(done, total)


def _check_table(source: FolderSource, name: str, table: Tensor) -> None:
    gate = name.removesuffix("tid2eid") + "weight"
    experts = source.files.shape(gate)[0] if source.holds(gate) else 0
    if experts and not ((table >= 0) & (table < experts)).all():
        raise ValueError(f"{source.files.where(name)} lists an expert that does not exist; the file is damaged")
