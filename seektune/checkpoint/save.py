"""Save a model's tensors as a checkpoint folder in any format, atomically."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup

from seektune.checkpoint.atomic_dir import complete_folder
from seektune.checkpoint.export import ExportReport, ExportTarget, export_tensors
from seektune.checkpoint.formats import format_named
from seektune.checkpoint.gather import on_first_rank
from seektune.checkpoint.names import Shape
from seektune.checkpoint.ranks import Ranks
from seektune.checkpoint.shard import Shard, as_shard
from seektune.checkpoint.source import FolderSource, Source, StateSource
from seektune.checkpoint.write import check_disk_space, shard_limit, shard_names, split, write_index, write_shard


def save_weights(
    state: Mapping[str, Tensor | Shard],
    config: dict[str, Any],
    folder: Path,
    format: str,
    original: Path | None = None,
    shard_bytes: int | None = None,
    group: ProcessGroup | None = None,
    complete: Mapping[str, Shape] | None = None,
) -> ExportReport:
    """Write a state dict and its config.json; memory beyond the model is one tensor.

    With `original`, tensors that training did not change keep the bytes of that checkpoint. A shard holds one layer, or
    as many layers as fit into `shard_bytes`.

    With a `group` (gloo), all its ranks call this together, each with its own shards, and rank 0 writes. `complete`
    gives names and shapes of the whole model in the order in which they are written.

    Raises:
        ValueError: an unknown format, a tensor that it cannot hold, or `folder` exists and is not empty.
        OSError: writing failed; nothing is left behind. An error on one rank is raised on all.
    """
    target = format_named(format)

    def write(source: Source) -> ExportReport:
        report = ExportReport()
        original_source = FolderSource(original) if original is not None else None
        with complete_folder(folder) as scratch:
            write_checkpoint(scratch, target.config(config), source, target, report, original_source, shard_bytes)
        return report

    if group is None:
        return write(StateSource({name: as_shard(state[name]).whole() for name in complete or state}))
    return on_first_rank(state, complete, Ranks(group), write)


def write_checkpoint(
    folder: Path,
    config: dict[str, Any],
    source: Source,
    target: ExportTarget,
    report: ExportReport,
    original: FolderSource | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Write config.json and the shards of an export into an existing folder."""
    write_config(folder, config)
    planned = list(export_tensors(source, target, report, original))
    shards = split(planned, shard_bytes or shard_limit(planned))
    check_disk_space(folder.parent, shards)
    for name, shard in zip(shard_names(len(shards)), shards, strict=True):
        write_shard(folder / name, shard)
    write_index(folder, shards)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json."""
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
