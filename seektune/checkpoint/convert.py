"""Convert a checkpoint folder to another format: streamed, resumable, never over a folder of anything else."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seektune.checkpoint.carried import Carrying
from seektune.checkpoint.check_values import check_values
from seektune.checkpoint.companions import copy_companions
from seektune.checkpoint.drafter import with_drafter
from seektune.checkpoint.export import ExportReport, export_tensors
from seektune.checkpoint.formats import format_named
from seektune.checkpoint.resumable_dir import Record, ResumableDir, read_record, resumable_dir
from seektune.checkpoint.source import FolderSource
from seektune.checkpoint.write import (
    LazyTensors,
    check_disk_space,
    file_size,
    shard_limit,
    shard_names,
    split,
    write_index,
    write_shard,
)
from seektune.io.config_json import read_config, write_config

Progress = Callable[[int, int], None]
"""Called with bytes done so far and in all."""


@dataclass(frozen=True)
class Conversion:
    """A finished conversion."""

    folder: Path
    shards: int
    resumed: int
    """Shards that an earlier call had already written."""
    copied: int
    """Tensors whose bytes were copied."""
    converted: int
    """Tensors that were decoded and encoded again."""
    inexact: list[str]
    """Those of them whose values the format cannot represent exactly."""


def convert(
    source: Path,
    destination: Path,
    format: str,
    original: Path | None = None,
    progress: Progress = lambda done, total: None,
    shard_bytes: int | None = None,
    checking: Progress = lambda done, total: None,
) -> Conversion:
    """Write `source` in another format with memory for one tensor. An interrupted call is resumed by the next.

    Other small files of the source (tokenizer, generation config) are copied, and DSpark stages as they are.

    Args:
        source: a checkpoint folder.
        destination: a new or empty folder.
        format: one of `FORMATS`.
        original: a checkpoint folder; tensors that still have its values keep its bytes, and its licence, generation
            config, chat template and `encoding/` are copied if the source has none. A source without MTP block and
            DSpark stages gets the original's.
        progress: called with the bytes written so far and in all.
        shard_bytes: size limit of a shard; one shard per layer if not given.
        checking: called with the bytes searched for damaged values so far and in all, before anything is written.

    Raises:
        ValueError: unknown format, unreadable source, a tensor that holds NaN or infinity or that the format cannot
            hold, or a destination that holds something else or is being written by another call.
        OSError: not enough disk space, or writing failed; complete shards are kept for the next call.
    """
    weights = FolderSource(source)
    report = ExportReport()
    original_source = FolderSource(original) if original is not None else None
    content, config = with_drafter(weights, read_config(source), original_source)
    holder = weights if content is weights or original_source is None else original_source
    target = Carrying.of(holder).target(format_named(format))
    final = resolve_destination(source, destination)
    plan = _plan(source, format, original, shard_bytes)
    if (record := _finished(final, plan)) is not None:
        return _conversion(final, record, resumed=len(record["shards"]))
    planned = list(export_tensors(content, target, report, original_source))
    shards = _by_name(split(planned, shard_bytes or shard_limit(planned)))
    with resumable_dir(final, plan) as work:
        # checked again under the lock: another call may have finished since
        _check_free(final)
        resumed = _drop_damaged(work, shards)
        if not resumed:
            check_values(weights, checking)
        unwritten = [shard for name, shard in shards.items() if name not in work.record["shards"]]
        check_disk_space(work.final.parent, unwritten)
        _write_shards(work, shards, report, progress)
        write_index(work.folder, list(shards.values()))
        write_config(work.folder, target.config(config))
        copy_companions(source, work.folder, original)
        work.publish()
    return _conversion(final, work.record, resumed)


def _plan(source: Path, format: str, original: Path | None, shard_bytes: int | None) -> dict[str, Any]:
    """What a call writes; only a call with the same plan resumes it."""
    return {
        "format": format,
        "shard_bytes": shard_bytes,
        "source": _fingerprint(source),
        "original": _fingerprint(original) if original is not None else None,
    }


def resolve_destination(source: Path, destination: Path) -> Path:
    """The destination with links resolved, because a folder cannot be renamed over a link.

    Raises:
        ValueError: a finished folder cannot be renamed to that path.
    """
    final = destination.resolve()
    if final == source.resolve():
        raise ValueError(f"source and destination are the same folder, {destination}; choose another destination")
    for parent in final.parents:
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"{destination} cannot be created: {parent} is a file")
    if final.is_mount():
        raise ValueError(f"{destination} is a mount point, which cannot be replaced; choose a folder inside it")
    return final


def _finished(final: Path, plan: Record) -> Record | None:
    """The record of an earlier call that completed this plan; None if there was none.

    Raises:
        ValueError: the folder holds something else, or the earlier result is damaged.
    """
    record = read_record(final)
    if record is None or record["plan"] != plan or not record["complete"]:
        _check_free(final)
        return None
    for name, shard in record["shards"].items():
        if not (final / name).is_file() or (final / name).stat().st_size != shard["bytes"]:
            raise ValueError(
                f"{final} was converted before, but {name} is missing or truncated; remove the folder and retry"
            )
    return record


def _check_free(final: Path) -> None:
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise ValueError(f"{final} already exists and is not this conversion; choose another folder")


def _by_name(shards: list[list[LazyTensors]]) -> dict[str, list[LazyTensors]]:
    return dict(zip(shard_names(len(shards)), shards, strict=True))


def _drop_damaged(work: ResumableDir, shards: dict[str, list[LazyTensors]]) -> int:
    """Drop shards from the record that are missing or truncated on disk; returns how many remain."""
    known = work.record["shards"]
    for name in list(known):
        file = work.folder / name
        if name not in shards or not file.is_file() or file.stat().st_size != file_size(shards[name]):
            del known[name]
    return len(known)


def _write_shards(
    work: ResumableDir, shards: dict[str, list[LazyTensors]], report: ExportReport, progress: Progress
) -> None:
    total = sum(item.size for shard in shards.values() for item in shard)
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    for name, shard in shards.items():
        if name in work.record["shards"]:
            advance(sum(item.size for item in shard))
            continue
        report.clear()
        try:
            write_shard(work.folder / name, shard, advance)
        except OSError as error:
            complete = f"{len(work.record['shards'])} of {len(shards)} shards are complete"
            message = f"{error.strerror or error}; {complete}; run the same command again to resume"
            raise OSError(error.errno, message, error.filename) from error
        work.record["shards"][name] = {"bytes": file_size(shard), **asdict(report)}
        work.save_record()
    # in shard order, whichever call wrote which shard
    work.record["shards"] = {name: work.record["shards"][name] for name in shards}


def _fingerprint(folder: Path) -> dict[str, list[int]]:
    """Size and modification time of each weight file, to notice a changed source; links that lead nowhere are none."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", ".json") and file.is_file()]
    stats = {file.name: file.stat() for file in files}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _conversion(folder: Path, record: Record, resumed: int) -> Conversion:
    shards = record["shards"].values()
    return Conversion(
        folder,
        shards=len(shards),
        resumed=resumed,
        copied=sum(len(shard["copied"]) for shard in shards),
        converted=sum(len(shard["converted"]) for shard in shards),
        inexact=[name for shard in shards for name in shard["inexact"]],
    )
