"""A shard in the form that torch.distributed.checkpoint (DCP) saves and loads."""

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from seektune.checkpoint.shard import Shard


class DcpShard:
    """DCP calls these methods by their names."""

    def __init__(self, shard: Shard):
        self._shape = torch.Size(shard.shape)
        self._parts = shard.parts()

    def size(self) -> torch.Size:
        """Shape of the whole tensor."""
        return self._shape

    def __create_write_items__(self, fqn: str, object: object) -> list[WriteItem]:
        """The parts to save."""
        return [
            WriteItem(
                MetadataIndex(fqn, part.offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    _chunk(part), TensorProperties.create_from_tensor(part.tensor), self._shape
                ),
            )
            for part in self._parts
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """The parts to load."""
        return [_chunk(part) for part in self._parts]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        """The part that is saved or loaded."""
        return next(part.tensor for part in self._parts if part.offsets == index.offset)


def _chunk(part: Shard) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(part.offsets), part.tensor.shape)
