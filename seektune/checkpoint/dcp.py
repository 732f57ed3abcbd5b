"""Write and read shards with torch.distributed.checkpoint (DCP), as safetensors files of bounded size per rank.

The layout is the same for one process and for many: `shard-<rank>-model-<number>-of-<count>.safetensors`; each file
stores the offsets of its shards in the whole tensors.
"""

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from seektune.checkpoint.dcp_shard import DcpShard
from seektune.checkpoint.names import Shape
from seektune.checkpoint.ranks import Ranks
from seektune.checkpoint.shard import FILE_BYTES, Shard
from seektune.checkpoint.sharding_info import check_offsets, check_whole
from seektune.io.text import on_one_line


def write_shards(folder: Path, shards: Mapping[str, Shard], ranks: Ranks) -> None:
    """Write the shards of every rank; replicas are written once.

    Raises:
        OSError: writing failed on a rank, for example because the disk is full; raised on all ranks.
    """
    writer = _StorageWriter(str(folder), save_distributed=True)
    with _unwrap_failures(OSError), ranks.communicating() if ranks.group is not None else _single_process():
        dcp.save(
            {name: DcpShard(shard) for name, shard in shards.items()},
            storage_writer=writer,
            planner=_SavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=ranks.group,
            no_dist=ranks.group is None,
        )


def files_of(folder: Path, rank: int) -> list[Path]:
    """The files that a rank wrote."""
    return sorted(folder.glob(f"shard-{rank + 1:05}-*"))


def read_metadata(folder: Path) -> Metadata:
    """Which shards the files of a folder hold, from their headers.

    Raises:
        ValueError: a file is damaged, or the shards of all files are not whole tensors.
    """
    for file in sorted(folder.glob("*.safetensors")):
        check_offsets(file)
    try:
        metadata = HuggingFaceStorageReader(str(folder)).read_metadata()
    except SafetensorError as error:
        raise ValueError(f"{folder} is damaged: {on_one_line(str(error)[:300])}") from None
    check_whole(metadata, folder)
    return metadata


def shapes_in(metadata: Metadata) -> dict[str, Shape]:
    """Shapes of the whole tensors."""
    entries = metadata.state_dict_metadata.items()
    return {name: tuple(entry.size) for name, entry in entries if isinstance(entry, TensorStorageMetadata)}


def read_shards(folder: Path, metadata: Metadata, shards: Mapping[str, Shard]) -> None:
    """Fill shards in place from files of any sharding; names and shapes must have been checked.

    Raises:
        ValueError: a file is damaged.
    """
    with _unwrap_failures(ValueError), _single_process():
        dcp.load(
            {name: DcpShard(shard) for name, shard in shards.items()},
            storage_reader=_StorageReader(folder, metadata),
            planner=_LoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            no_dist=True,
        )


class _SavePlanner(DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].__get_tensor_shard__(index).contiguous()


class _LoadPlanner(DefaultLoadPlanner):
    def set_up_planner(
        self, state_dict: dict[str, DcpShard], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        # DCP's own set-up would look for tensors on the meta device and reject anything that is not a tensor
        self.state_dict = state_dict
        self.metadata = metadata
        self.is_coordinator = is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].__get_tensor_shard__(index)


class _StorageWriter(HuggingFaceStorageWriter):
    """Assigns files per rank by what it writes; DCP's own writer would assign names to the same files on all ranks."""

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [
            dataclasses.replace(
                plan, storage_data={"shard_index": number, "fqn_to_index_mapping": _file_numbers(plan.items)}
            )
            for number, plan in enumerate(plans, start=1)
        ]

    def _split_by_storage_plan(
        self, storage_plan: dict[str, int] | None, items: list[WriteItem]
    ) -> dict[int, list[WriteItem]]:
        assert storage_plan is not None, "every plan has one"
        files: dict[int, list[WriteItem]] = {}
        for item in items:
            files.setdefault(storage_plan[_key(item)], []).append(item)
        return files


class _StorageReader(HuggingFaceStorageReader):
    """A reader with metadata that was read before."""

    def __init__(self, folder: Path, metadata: Metadata):
        super().__init__(str(folder))
        self._known = metadata

    def read_metadata(self) -> Metadata:
        return self._known


def _key(item: WriteItem) -> str:
    return f"{item.index.fqn}@{item.index.offset}"


def _file_numbers(items: list[WriteItem]) -> dict[str, int]:
    """The file number of each shard, from 1. Two shards of one tensor never share a file."""
    numbers: dict[str, int] = {}
    number = 1
    filled = 0
    names = set[str]()
    for item in items:
        assert item.tensor_data is not None, "only tensors are saved"
        size = prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize
        if filled and (filled + size > FILE_BYTES or item.index.fqn in names):
            number = number + 1
            filled = 0
            names = set()
        numbers[_key(item)] = number
        filled += size
        names.add(item.index.fqn)
    return numbers


@contextmanager
def _unwrap_failures(failure: type[OSError | ValueError]) -> Iterator[None]:
    """Raise the cause of a CheckpointException instead."""
    try:
        yield
    except dcp.api.CheckpointException as error:
        raise _cause(error, failure) from None


@contextmanager
def _single_process() -> Iterator[None]:
    """Silence DCP's warning that torch.distributed is not initialized."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _cause(error: dcp.api.CheckpointException, failure: type[OSError | ValueError]) -> BaseException:
    """The first OSError if there is one, otherwise the first rank's error as a `failure`."""
    causes = [cause for _, (cause, _) in sorted(error.failures.items())]
    disk = [cause for cause in causes if isinstance(cause, OSError)]
    return disk[0] if disk else failure(f"{type(causes[0]).__name__}: {causes[0]}")
