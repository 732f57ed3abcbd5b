"""A model's tensors as a checkpoint folder in any format, complete or not there at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup

from seektune.checkpoint.export import Kinds, Tally, pieces
from seektune.checkpoint.formats import format_named
from seektune.checkpoint.gather import on_first_rank
from seektune.checkpoint.names import Shape
from seektune.checkpoint.ranks import Ranks
from seektune.checkpoint.shard import Shard, as_shard
from seektune.checkpoint.source import FolderSource, Source, StateSource
from seektune.checkpoint.write import check_room, shard_limit, shard_names, split, write_index, write_shard
from seektune.io.atomic_dir import complete_folder
from seektune.io.config_json import write_config


def save_weights(
    state: Mapping[str, Tensor | Shard],
    config: dict[str, Any],
    folder: Path,
    format: str,
    original: Path | None = None,
    shard_bytes: int | None = None,
    group: ProcessGroup | None = None,
    complete: Mapping[str, Shape] | None = None,
) -> Tally:
    """Write a state dict and its config.json; memory beyond the model is one tensor.

    With `original`, tensors that training did not change keep the bytes of that checkpoint. Each layer gets a shard of
    its own, or as many layers as fit into `shard_bytes`.

    With a `group` (gloo), all its ranks call this together with the pieces that they hold, and rank 0 writes;
    `complete` gives names and shapes of the whole model in the order in which they are written.

    Raises:
        ValueError: an unknown format, a tensor that it cannot hold, or `folder` exists and is not empty.
        OSError: writing failed; nothing is left behind. What fails on one rank is raised on all.
    """
    target = format_named(format)

    def write(source: Source) -> Tally:
        tally = Tally()
        before = FolderSource(original) if original is not None else None
        with complete_folder(folder) as scratch:
            write_checkpoint(scratch, target.config(config), source, target, tally, before, shard_bytes)
        return tally

    if group is None:
        return write(StateSource({name: as_shard(state[name]).whole() for name in complete or state}))
    return on_first_rank(state, complete, Ranks(group), write)


def write_checkpoint(
    folder: Path,
    config: dict[str, Any],
    source: Source,
    target: Kinds,
    tally: Tally,
    original: FolderSource | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Write config.json and the shards of an export into an existing folder."""
    write_config(folder, config)
    parts = list(pieces(source, target, tally, original))
    shards = split(parts, shard_bytes or shard_limit(parts))
    check_room(folder.parent, shards)
    for name, shard in zip(shard_names(len(shards)), shards, strict=True):
        write_shard(folder / name, shard)
    write_index(folder, shards)
