"""Names of the tensors in a checkpoint folder, from its index or its only file; nothing else is checked or read."""

import json
from pathlib import Path

from seektune.io.json_file import read_json
from seektune.io.regular_file import open_regular

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LENGTH_BYTES = 8
"""Bytes of a header's length at the beginning of a safetensors file, little-endian."""
_LARGEST_HEADER = 100_000_000
"""safetensors' own limit."""


def tensor_names(folder: Path) -> set[str] | None:
    """The names as stored; None if the folder has no weights, or neither index nor header can be read."""
    try:
        return {name for name in _listed(folder) if isinstance(name, str)}
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return None


def _listed(folder: Path) -> dict[object, object]:
    if (folder / INDEX).is_file():
        found: dict[object, object] = read_json(folder / INDEX)["weight_map"]
        return found
    with open_regular(folder / SINGLE) as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        header: dict[object, object] = json.loads(file.read(min(length, _LARGEST_HEADER)))
    return header
