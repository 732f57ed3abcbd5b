"""The state of a training run at rest: tensors, facts and checksums in a folder that is complete or not there.

torch.distributed.checkpoint writes and reads the tensors as safetensors, facts are JSON: reading unpickles nothing.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from seektune.checkpoint.publish import complete_folder

FACTS, MANIFEST = "state.json", "manifest.json"
FILE_BYTES = 2**30
"""Where a further file begins; the engine holds one file in memory while it writes."""


def write_run_state(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> int:
    """Write a checkpoint and return its bytes; it replaces an older one of that name only when it is complete.

    Raises:
        OSError: writing failed, for example because the disk is full; nothing is left under the name.
    """
    with complete_folder(folder, replace=True) as scratch:
        with _in_one_process():
            writer = HuggingFaceStorageWriter(str(scratch), _file_numbers(tensors), save_distributed=True)
            whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
            _saving(lambda: dcp.save(whole, storage_writer=writer, no_dist=True))
        (scratch / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        files = sorted(scratch.iterdir())
        manifest = {file.name: {"bytes": file.stat().st_size, "sha256": _digest(file)} for file in files}
        (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return sum(file.stat().st_size for file in folder.iterdir())


def check_run_state(folder: Path) -> None:
    """Compare every file with the manifest's size and checksum.

    Raises:
        ValueError: a file is missing, foreign or damaged; the sentence names it.
    """
    manifest = _manifest(folder / MANIFEST)
    found = {file.name for file in folder.iterdir()} - {MANIFEST}
    if foreign := sorted(found - manifest.keys()):
        raise ValueError(f"{folder / foreign[0]} does not belong to this checkpoint")
    # by the names that are there, so that a manifest leads nowhere else
    if missing := sorted({FACTS, *manifest} - found):
        raise ValueError(f"{folder / missing[0]} is missing")
    for name, (size, digest) in manifest.items():
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
    return _read_json(folder / FACTS)


def tensor_names(folder: Path) -> set[str]:
    """Names of the tensors of a checkpoint, from the headers of its files."""
    return set(_shapes(folder))


def read_tensors(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Fill tensors in place.

    Raises:
        ValueError: the checkpoint has other tensors, or of other shapes; the sentence names one.
    """
    shapes = _shapes(folder)
    if differing := sorted(shapes.keys() ^ into.keys()):
        place = "only in the checkpoint" if differing[0] in shapes else "not in the checkpoint"
        raise ValueError(f"{folder} is of another model or optimizer: {differing[0]} is {place}")
    for name, tensor in into.items():
        if shapes[name] != tuple(tensor.shape):
            raise ValueError(f"{folder} is of another model: {name} has shape {list(shapes[name])} there")
    with _in_one_process():
        dcp.load(dict(into), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    metadata = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in metadata.items() if isinstance(entry, TensorStorageMetadata)}


def _file_numbers(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Which file each tensor goes to, counted from 1."""
    numbers, number, filled = {}, 1, 0
    for name, tensor in tensors.items():
        if filled and filled + tensor.nbytes > FILE_BYTES:
            number, filled = number + 1, 0
        numbers[name] = number
        filled += tensor.nbytes
    return numbers


def _saving(save: Any) -> None:
    """Run a save; what the engine wraps around a failed write is taken off."""
    try:
        save()
    except dcp.api.CheckpointException as error:
        causes = [failure for failure, _ in error.failures.values() if isinstance(failure, OSError)]
        raise causes[0] if causes else OSError(str(error)) from None


@contextmanager
def _in_one_process() -> Iterator[None]:
    """One process is what is meant here; the engine need not warn of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _manifest(file: Path) -> dict[str, tuple[int, str]]:
    """Bytes and checksum of each file."""
    try:
        return {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in _read_json(file).items()}
    except (KeyError, TypeError):
        raise ValueError(f"{file} is damaged: it lacks a size or a checksum") from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file} is missing") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{file} is damaged: it is not JSON") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file} is damaged: it holds no JSON object")
    return values
