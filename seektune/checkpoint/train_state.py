"""Checkpoints of a training run: tensors, facts and checksums in a folder that is written atomically.

torch.distributed.checkpoint stores the tensors as safetensors, facts are JSON: reading unpickles nothing. The former
is imported where it is used: that takes a second, and commands that do not train need no run's state.
"""

import hashlib
from collections.abc import Callable, Mapping, Set
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup

from seektune.checkpoint.names import check_name
from seektune.checkpoint.ranks import Ranks
from seektune.checkpoint.shard import Shard, as_shard
from seektune.io.atomic_dir import complete_folder
from seektune.io.json_file import read_json, whole_number, write_json

FACTS = "state.json"
MANIFEST = "manifest.json"
LARGEST_FILE = 2**62
"""Bytes that no file has."""


def write_train_state(
    folder: Path, tensors: Mapping[str, Tensor | Shard], facts: Mapping[str, Any], group: ProcessGroup | None = None
) -> int:
    """Write a checkpoint and return its size in bytes. It replaces an older one of that name only once it is complete.

    With a `group` (gloo, used for nothing else), all its ranks call this together. Each writes its shards into the one
    folder, which must be visible to all; replicas are written once. The facts are those of rank 0.

    Raises:
        OSError: writing failed on a rank, for example because the disk is full. Raised on all ranks; nothing is left
            under the name.
    """
    from seektune.checkpoint.dcp import files_of, write_shards

    ranks = Ranks(group)
    shards = {name: as_shard(tensor) for name, tensor in tensors.items()}
    with ExitStack() as stack:
        scratch = ranks.first(lambda: stack.enter_context(complete_folder(folder, replace=True)))
        write_shards(scratch, shards, ranks)
        written = ranks.each(lambda: {file.name: _entry(file) for file in files_of(scratch, ranks.rank)})

        def complete() -> int:
            write_json(scratch / FACTS, facts)
            manifest = {name: entry for entries in written for name, entry in entries.items()}
            _check_all_here(scratch, manifest.keys())
            manifest[FACTS] = _entry(scratch / FACTS)
            write_json(scratch / MANIFEST, manifest)
            size = sum(file.stat().st_size for file in scratch.iterdir())
            stack.close()
            return size

        return ranks.first(complete)


def check_train_state(folder: Path, group: ProcessGroup | None = None) -> None:
    """Compare every file with the manifest's size and checksum; the ranks of a `group` share the work.

    Raises:
        ValueError: a file is missing, foreign or damaged; the message names it and is the same on all ranks.
    """
    ranks = Ranks(group)
    ranks.each(lambda: _check(folder, ranks.rank, ranks.count))


def _check(folder: Path, rank: int, count: int) -> None:
    """Check the list of files, and the content of every `count`-th file."""
    manifest = _manifest(folder / MANIFEST)
    found = {file.name for file in folder.iterdir()} - {MANIFEST}
    if foreign := sorted(found - manifest.keys()):
        raise ValueError(f"{folder / foreign[0]} does not belong to this checkpoint")
    # compared by name, so that a manifest cannot point outside the folder
    if missing := sorted({FACTS, *manifest} - found):
        raise ValueError(f"{folder / missing[0]} is missing")
    for name, (size, digest) in list(manifest.items())[rank::count]:
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{file} is not a file")
        if file.stat().st_size != size:
            raise ValueError(f"{file} has {file.stat().st_size:,} bytes, but {size:,} were written")
        if _digest(file) != digest:
            raise ValueError(f"{file} is damaged: its checksum is not the one that was written")


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts of a checkpoint.

    Raises:
        ValueError: they are missing or damaged.
    """
    return read_json(folder / FACTS)


def tensor_names(folder: Path) -> set[str]:
    """Names of the tensors of a checkpoint, from the headers of its files."""
    from seektune.checkpoint.dcp import read_metadata, shapes_in

    return set(shapes_in(read_metadata(folder)))


def read_tensors(
    folder: Path,
    into: Mapping[str, Tensor | Shard],
    group: ProcessGroup | None = None,
    complete: set[str] | None = None,
    optional: Callable[[str], bool] = lambda name: False,
) -> None:
    """Fill tensors in place from a checkpoint of any sharding; a rank reads only what it needs.

    With a `group`, all its ranks call this together, each with its own shards.

    Args:
        folder: a checkpoint, written by any number of processes.
        into: this rank's tensors and shards.
        group: a gloo group, all of whose ranks load.
        complete: the names on all ranks, if the group does not hold all of them.
        optional: whether a name may be missing on either side, such as state of a single rank when the number of ranks
            changed. Tensors that the checkpoint lacks stay unchanged.

    Raises:
        ValueError: the checkpoint has other tensors or shapes; the message names one and is the same on all ranks.
    """
    from seektune.checkpoint.dcp import read_metadata, read_shards, shapes_in

    ranks = Ranks(group)
    shards = {name: as_shard(tensor) for name, tensor in into.items()}
    metadata = ranks.first(lambda: read_metadata(folder))
    shapes = shapes_in(metadata)
    wanted = set().union(*ranks.each(lambda: set(shards))) if complete is None else complete

    def read() -> None:
        _check_names(folder, shapes.keys(), wanted | shards.keys(), optional)
        here = {name: shard for name, shard in shards.items() if name in shapes}
        for name, shard in here.items():
            if shapes[name] != shard.shape:
                raise ValueError(f"{folder} belongs to another model: {name} has shape {list(shapes[name])} in it")
        read_shards(folder, metadata, here)

    ranks.each(read)


def _check_names(folder: Path, found: Set[str], wanted: Set[str], optional: Callable[[str], bool]) -> None:
    for name in sorted(found ^ wanted):
        if not optional(name):
            where = "only in the checkpoint" if name in found else "not in the checkpoint"
            raise ValueError(f"{folder} belongs to another model or optimizer: {name} is {where}")


def _check_all_here(folder: Path, names: Set[str]) -> None:
    if missing := sorted(name for name in names if not (folder / name).is_file()):
        raise OSError(
            f"{folder.parent} is not the same folder for all ranks: {missing[0]}, which another rank wrote, is missing"
        )


def _entry(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": _digest(file)}


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _manifest(file: Path) -> dict[str, tuple[int, str]]:
    """Size in bytes and SHA-256 of each file."""
    listed = read_json(file)
    for name in listed:
        check_name(name, file)
    try:
        return {name: _size_and_digest(entry) for name, entry in listed.items()}
    except (KeyError, ValueError):
        raise ValueError(f"{file} is damaged: it lacks a size or a checksum") from None


def _size_and_digest(entry: Any) -> tuple[int, str]:
    return whole_number(entry, "bytes", 0, LARGEST_FILE), str(entry["sha256"])
