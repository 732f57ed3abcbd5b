"""Save a model's tensors as a checkpoint folder in any format, atomically."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup

from seektune.checkpoint.carried import Carrying
from seektune.checkpoint.export import ExportReport, ExportTarget, export_tensors
from seektune.checkpoint.formats import format_named
from seektune.checkpoint.gather import on_first_rank
from seektune.checkpoint.names import Shape
from seektune.checkpoint.ranks import Ranks
from seektune.checkpoint.shard import Shard, as_shard
from seektune.checkpoint.source import FolderSource, Source, StateSource
from seektune.checkpoint.write import check_disk_space, shard_limit, shard_names, split, write_index, write_shard
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
    carried: Path | None = None,
) -> ExportReport:
    """Write a state dict and its config.json; memory beyond the model is one tensor.

    With `original`, tensors that training did not change keep the bytes of that checkpoint. A shard holds one layer, or
    as many layers as fit into `shard_bytes`.

    With a `group` (gloo), all its ranks call this together, each with its own shards, and rank 0 writes. `complete`
    gives names and shapes of the whole model in the order in which they are written. DSpark stages of the folder
    `carried` are written too, as they are; if the state is such stages and nothing else, everything else of the folder.

    Raises:
        ValueError: an unknown format, a tensor that it cannot hold, or `folder` exists and is not empty.
        OSError: writing failed; nothing is left behind. An error on one rank is raised on all.
    """
    target = format_named(format)

    def write(source: Source) -> ExportReport:
        report = ExportReport()
        original_source = FolderSource(original) if original is not None else None
        goal: ExportTarget = target
        if carried is not None:
            carrying = Carrying.rest(FolderSource(carried), {name for name, _ in source.shapes()})
            goal = carrying.target(target)
            source = carrying.source(source)
        with complete_folder(folder) as scratch:
            write_checkpoint(scratch, target.config(config), source, goal, report, original_source, shard_bytes)
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
