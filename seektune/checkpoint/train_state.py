"""The state of a training run at rest: tensors, facts and checksums in a folder that is complete or not there.

torch.distributed.checkpoint writes and reads the tensors as safetensors, facts are JSON: reading unpickles nothing.
"""

import hashlib
from collections.abc import Callable, Mapping, Set
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup

from seektune.checkpoint.dcp import files_of, read_metadata, read_shards, shapes_in, write_shards
from seektune.checkpoint.ranks import Ranks
from seektune.checkpoint.shard import Shard, as_shard
from seektune.io.atomic_dir import complete_folder
from seektune.io.json_file import read_json, write_json

FACTS = "state.json"
MANIFEST = "manifest.json"


def write_train_state(
    folder: Path, tensors: Mapping[str, Tensor | Shard], facts: Mapping[str, Any], group: ProcessGroup | None = None
) -> int:
    """Write a checkpoint and return its bytes; it replaces an older one of that name only when it is complete.

    With a `group` (gloo, of its own), all its ranks call this together and each writes what it holds into the one
    folder, which all see; what several hold is written once. The facts are those of rank 0.

    Raises:
        OSError: writing failed on a rank, for example because the disk is full; it is raised on all, and nothing is
            left under the name.
    """
    ranks = Ranks(group)
    shards = {name: as_shard(held) for name, held in tensors.items()}
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
        ValueError: a file is missing, foreign or damaged; the sentence names it, on all ranks the same.
    """
    ranks = Ranks(group)
    ranks.each(lambda: _check(folder, ranks.rank, ranks.count))


def _check(folder: Path, rank: int, count: int) -> None:
    """The list of files, and every `count`-th file's content."""
    manifest = _manifest(folder / MANIFEST)
    found = {file.name for file in folder.iterdir()} - {MANIFEST}
    if foreign := sorted(found - manifest.keys()):
        raise ValueError(f"{folder / foreign[0]} does not belong to this checkpoint")
    # by the names that are there, so that a manifest leads nowhere else
    if missing := sorted({FACTS, *manifest} - found):
        raise ValueError(f"{folder / missing[0]} is missing")
    for name, (size, digest) in list(manifest.items())[rank::count]:
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{file} is no file")
        if file.stat().st_size != size:
            raise ValueError(f"{file} has {file.stat().st_size:,} bytes, {size:,} were written")
        if _digest(file) != digest:
            raise ValueError(f"{file} is damaged: its checksum is not the one that was written")


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts of a checkpoint.

    Raises:
        ValueError: there are none.
    """
    return read_json(folder / FACTS)


def tensor_names(folder: Path) -> set[str]:
    """Names of the tensors of a checkpoint, from the headers of its files."""
    return set(shapes_in(read_metadata(folder)))


def read_tensors(
    folder: Path,
    into: Mapping[str, Tensor | Shard],
    group: ProcessGroup | None = None,
    complete: set[str] | None = None,
    optional: Callable[[str], bool] = lambda name: False,
) -> None:
    """Fill tensors in place, whatever the pieces in which they were saved; a rank reads only what it needs.

    With a `group`, all its ranks call this together and each fills what it holds.

    Args:
        folder: a checkpoint, written by any number of processes.
        into: what this rank holds.
        group: gloo, all of whose ranks load.
        complete: the names of all ranks, if that is not what the group holds together.
        optional: names that may be missing here, or be in the checkpoint although nobody wants them; such as what
            belongs to one rank, where there are more or fewer of them now. Missing ones stay as they are.

    Raises:
        ValueError: the checkpoint has other tensors, or of other shapes; the sentence names one, on all ranks the same.
    """
    ranks = Ranks(group)
    shards = {name: as_shard(held) for name, held in into.items()}
    metadata = ranks.first(lambda: read_metadata(folder))
    shapes = shapes_in(metadata)
    wanted = set().union(*ranks.each(lambda: set(shards))) if complete is None else complete

    def read() -> None:
        _check_names(folder, shapes.keys(), wanted | shards.keys(), optional)
        here = {name: shard for name, shard in shards.items() if name in shapes}
        for name, shard in here.items():
            if shapes[name] != shard.shape:
                raise ValueError(f"{folder} is of another model: {name} has shape {list(shapes[name])} there")
        read_shards(folder, metadata, here)

    ranks.each(read)


def _check_names(folder: Path, found: Set[str], wanted: Set[str], optional: Callable[[str], bool]) -> None:
    for name in sorted(found ^ wanted):
        if not optional(name):
            place = "only in the checkpoint" if name in found else "not in the checkpoint"
            raise ValueError(f"{folder} is of another model or optimizer: {name} is {place}")


def _check_all_here(folder: Path, names: Set[str]) -> None:
    if missing := sorted(name for name in names if not (folder / name).is_file()):
        raise OSError(
            f"{folder.parent} is not the same folder for all ranks: {missing[0]}, which another rank wrote, is not here"
        )


def _entry(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": _digest(file)}


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _manifest(file: Path) -> dict[str, tuple[int, str]]:
    """Bytes and checksum of each file."""
    try:
        return {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in read_json(file).items()}
    except (KeyError, TypeError):
        raise ValueError(f"{file} is damaged: it lacks a size or a checksum") from None
