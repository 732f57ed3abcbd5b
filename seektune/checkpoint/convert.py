"""One checkpoint folder into another format: streamed, resumable, never over a folder that is not its own."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from seektune.checkpoint.export import Tally, pieces
from seektune.checkpoint.files import INDEX
from seektune.checkpoint.formats import format_named
from seektune.checkpoint.resumable_dir import RECORD, Record, ResumableDir, read_record, resumable_dir
from seektune.checkpoint.source import FolderSource
from seektune.checkpoint.write import (
    FilePiece,
    check_room,
    file_size,
    shard_limit,
    shard_names,
    split,
    write_index,
    write_shard,
)
from seektune.io.config_json import CONFIG, read_config, write_config

COMPANIONS = (".json", ".txt", ".md", ".jinja")
"""Files that come along unchanged: tokenizer, generation config, chat template, model card."""

Progress = Callable[[int, int], None]
"""Called with bytes written so far and in all."""


@dataclass(frozen=True)
class Conversion:
    """A finished conversion."""

    folder: Path
    shards: int
    resumed: int
    """Shards that an earlier call had completed."""
    copied: int
    """Tensors whose bytes were taken over."""
    converted: int
    """Tensors that were encoded anew."""
    inexact: list[str]
    """Those of them whose values the format cannot hold exactly."""


def convert(
    source: Path,
    destination: Path,
    format: str,
    original: Path | None = None,
    progress: Progress = lambda done, total: None,
    shard_bytes: int | None = None,
) -> Conversion:
    """Write `source` in another format; memory is that of one tensor. Called again after an interruption, it goes on.

    Other small files of the source (tokenizer, generation config) come along.

    Args:
        source: a checkpoint folder.
        destination: a new or empty folder.
        format: one of `FORMATS`.
        original: tensors whose values are still that checkpoint's keep its bytes.
        progress: hears of bytes written.
        shard_bytes: limit of a shard; a layer gets one of its own if not given.

    Raises:
        ValueError: unknown format, unreadable source, a tensor that the format cannot hold, or a destination that holds
            something else or is being written by another call.
        OSError: not enough room, or writing failed; what is complete stays for the next call.
    """
    target = format_named(format)
    parts = FolderSource(source)
    tally = Tally()
    before = FolderSource(original) if original is not None else None
    config = target.config(read_config(source))
    final = final_place(source, destination)
    plan = {
        "format": format,
        "shard_bytes": shard_bytes,
        "source": _fingerprint(source),
        "original": _fingerprint(original) if original is not None else None,
    }
    if (record := _finished(final, plan)) is not None:
        return _conversion(final, record, resumed=len(record["shards"]))
    planned = list(pieces(parts, target, tally, before))
    shards = _named(split(planned, shard_bytes or shard_limit(planned)))
    with resumable_dir(final, plan) as place:
        # again, now that nobody else can finish it
        _refuse_taken(final)
        resumed = _forget_damaged(place, shards)
        check_room(place.final.parent, [shard for name, shard in shards.items() if name not in place.record["shards"]])
        _write_shards(place, shards, tally, progress)
        write_index(place.folder, list(shards.values()))
        write_config(place.folder, config)
        copy_companions(source, place.folder)
        place.publish()
    return _conversion(final, place.record, resumed)


def final_place(source: Path, destination: Path) -> Path:
    """Where the result will lie, with links followed: a link itself could not be replaced by a folder.

    Raises:
        ValueError: a folder there could not get its name last.
    """
    final = destination.resolve()
    if final == source.resolve():
        raise ValueError(f"source and destination are the same folder, {destination}; choose another destination")
    for place in final.parents:
        if place.exists() and not place.is_dir():
            raise ValueError(f"{destination} cannot be made: {place} is a file")
    if final.is_mount():
        raise ValueError(f"{destination} is a mount point, which cannot get its name last; choose a folder inside it")
    return final


def _finished(final: Path, plan: Record) -> Record | None:
    """The record of an earlier call that did all this.

    Raises:
        ValueError: something else is there, or what that call left is damaged.
    """
    record = read_record(final)
    if record is None or record["plan"] != plan or not record["complete"]:
        _refuse_taken(final)
        return None
    for name, shard in record["shards"].items():
        if not (final / name).is_file() or (final / name).stat().st_size != shard["bytes"]:
            raise ValueError(f"{final} was converted before, but {name} is missing or cut; remove the folder and retry")
    return record


def _refuse_taken(final: Path) -> None:
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise ValueError(f"{final} already exists and is not this conversion; choose another folder")


def _named(shards: list[list[FilePiece]]) -> dict[str, list[FilePiece]]:
    return dict(zip(shard_names(len(shards)), shards, strict=True))


def _forget_damaged(place: ResumableDir, shards: dict[str, list[FilePiece]]) -> int:
    """Keep of the record what is on disk as it should be; the number of shards that are."""
    known = place.record["shards"]
    for name in list(known):
        file = place.folder / name
        if name not in shards or not file.is_file() or file.stat().st_size != file_size(shards[name]):
            del known[name]
    return len(known)


def _write_shards(place: ResumableDir, shards: dict[str, list[FilePiece]], tally: Tally, progress: Progress) -> None:
    total = sum(piece.size for shard in shards.values() for piece in shard)
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    for name, shard in shards.items():
        if name in place.record["shards"]:
            advance(sum(piece.size for piece in shard))
            continue
        tally.clear()
        try:
            write_shard(place.folder / name, shard, advance)
        except OSError as error:
            kept = (
                f"{len(place.record['shards'])} of {len(shards)} shards are complete; the same call goes on from there"
            )
            raise OSError(error.errno, f"{error.strerror or error}; {kept}", error.filename) from error
        place.record["shards"][name] = {"bytes": file_size(shard), **asdict(tally)}
        place.keep()
    # in order, whichever call wrote which
    place.record["shards"] = {name: place.record["shards"][name] for name in shards}


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the small files beside the weights, config.json aside."""
    own = {CONFIG, INDEX, RECORD}
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in COMPANIONS and file.name not in own:
            shutil.copyfile(file, folder / file.name)


def _fingerprint(folder: Path) -> dict[str, list[int]]:
    """Size and time of each weight file, so that a changed source is not taken for the same one."""
    stats = {file.name: file.stat() for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", ".json")}
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
