"""A model's tensors as a checkpoint folder in any format, complete or not there at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from seektune.checkpoint.export import Tally, pieces
from seektune.checkpoint.formats import FORMATS
from seektune.checkpoint.publish import complete_folder
from seektune.checkpoint.source import FolderSource, StateSource
from seektune.checkpoint.write import SHARD_BYTES, shard_names, split, write_index, write_shard


def save_weights(
    state: Mapping[str, Tensor],
    config: dict[str, Any],
    folder: Path,
    format: str,
    original: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Tally:
    """Write a state dict and its config.json; memory beyond the model is one tensor.

    With `original`, tensors that training did not change keep the bytes of that checkpoint.

    Raises:
        ValueError: an unknown format, or `folder` exists and is not empty.
        OSError: writing failed; nothing is left behind.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown; the formats are {', '.join(FORMATS)}")
    tally = Tally()
    source, target = StateSource(state), FORMATS[format]
    before = FolderSource(original) if original is not None else None
    with complete_folder(folder) as scratch:
        write_config(scratch, target.config(config))
        shards = split(pieces(source, target, tally, before), shard_bytes)
        for name, shard in zip(shard_names(len(shards)), shards, strict=True):
            write_shard(scratch / name, shard)
        write_index(scratch, shards)
    return tally


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json."""
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
