"""One checkpoint folder into another format: streamed, resumable, never over a folder that is not its own."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seektune.checkpoint.export import Tally, pieces
from seektune.checkpoint.files import INDEX
from seektune.checkpoint.formats import FORMATS
from seektune.checkpoint.save import write_config
from seektune.checkpoint.source import FolderSource
from seektune.checkpoint.write import SHARD_BYTES, Piece, shard_names, split, write_index, write_shard

RECORD = "conversion.json"
"""What a conversion is made from and what became of each shard; it stays beside the result."""

Progress = Callable[[int, int], None]
"""Called with bytes written so far and in all."""


@dataclass(frozen=True)
class Conversion:
    """A finished conversion."""

    folder: Path
    resumed: int
    """Shards that an earlier, interrupted call had completed."""
    copied: int
    converted: int
    inexact: list[str]
    """Tensors whose values the format cannot hold exactly."""


def convert(
    source: Path,
    destination: Path,
    format: str,
    original: Path | None = None,
    progress: Progress = lambda done, total: None,
    shard_bytes: int = SHARD_BYTES,
) -> Conversion:
    """Write `source` in another format; memory is that of one tensor. Called again after an interruption, it goes on.

    Other small files of the source (tokenizer, generation config) come along. With `original`, tensors whose values are
    still that checkpoint's keep its bytes.

    Raises:
        ValueError: unknown format, unreadable source, or a destination that holds something else.
        OSError: not enough room, or writing failed; what is complete stays for the next call.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown; the formats are {', '.join(FORMATS)}")
    before = FolderSource(original) if original is not None else None
    plan = {"format": format, "source": _fingerprint(source), "original": _fingerprint(original)}
    if (done := _record(destination)) is not None and done["plan"] == plan and done["complete"]:
        return _finished(destination, done["shards"], resumed=len(done["shards"]))
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"{destination} already exists and is not this conversion; choose another folder")
    tally = Tally()
    shards = split(pieces(FolderSource(source), FORMATS[format], tally, before), shard_bytes)
    scratch, record = _begin(destination, plan)
    resumed = len(record["shards"])
    _check_room(scratch, shards, record["shards"])
    _write_shards(scratch, shards, record, tally, progress)
    _write_rest(source, scratch, shards, format)
    record["complete"] = True
    _save_record(scratch, record)
    os.replace(scratch, destination)
    return _finished(destination, record["shards"], resumed)


def _begin(destination: Path, plan: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The scratch folder beside the destination, new or left by an interrupted call of the same plan."""
    scratch = destination.with_name(f".{destination.name}.converting")
    record = _record(scratch)
    if record is None:
        if scratch.exists():
            shutil.rmtree(scratch)
        scratch.mkdir(parents=True)
        record = {"plan": plan, "shards": {}, "complete": False}
        _save_record(scratch, record)
    if record["plan"] != plan:
        raise ValueError(f"{scratch} holds an unfinished conversion of something else; remove it to start anew")
    return scratch, record


def _write_shards(
    scratch: Path, shards: list[list[Piece]], record: dict[str, Any], tally: Tally, progress: Progress
) -> None:
    total, done = sum(piece.size for shard in shards for piece in shard), 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    for name, shard in zip(shard_names(len(shards)), shards, strict=True):
        if name in record["shards"]:
            advance(sum(piece.size for piece in shard))
            continue
        tally.clear()
        write_shard(scratch / name, shard, advance)
        record["shards"][name] = asdict(tally)
        _save_record(scratch, record)


def _write_rest(source: Path, scratch: Path, shards: list[list[Piece]], format: str) -> None:
    write_index(scratch, shards)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    write_config(scratch, FORMATS[format].config(config))
    own = {"config.json", INDEX, RECORD}
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in (".json", ".txt", ".md", ".jinja") and file.name not in own:
            shutil.copyfile(file, scratch / file.name)


def _fingerprint(folder: Path | None) -> dict[str, list[int]] | None:
    """Size and time of each weight file, so that a changed source is not taken for the same one."""
    if folder is None:
        return None
    stats = {file.name: file.stat() for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", ".json")}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _check_room(scratch: Path, shards: list[list[Piece]], done: dict[str, Any]) -> None:
    names = shard_names(len(shards))
    left = [shard for name, shard in zip(names, shards, strict=True) if name not in done]
    needed, free = sum(piece.size for shard in left for piece in shard), shutil.disk_usage(scratch).free
    if needed > free:
        raise OSError(f"{scratch.parent} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed")


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    return record if isinstance(record, dict) and {"plan", "shards", "complete"} <= record.keys() else None


def _save_record(folder: Path, record: dict[str, Any]) -> None:
    scratch = folder / f"{RECORD}.partial"
    scratch.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, folder / RECORD)


def _finished(folder: Path, shards: dict[str, dict[str, list[str]]], resumed: int) -> Conversion:
    return Conversion(
        folder,
        resumed,
        copied=sum(len(shard["copied"]) for shard in shards.values()),
        converted=sum(len(shard["converted"]) for shard in shards.values()),
        inexact=[name for shard in shards.values() for name in shard["inexact"]],
    )
