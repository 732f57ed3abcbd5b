"""Where the shards of a file belong in whole tensors: the metadata that torch.distributed.checkpoint (DCP) stores."""

import json
from math import prod
from pathlib import Path

from safetensors import safe_open
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from seektune.checkpoint.header import read_header

LARGEST_OFFSET = 2**48
"""Beyond any dim of a tensor."""


def check_offsets(file: Path) -> None:
    """Check that a file says of each of its tensors where it begins in the whole one.

    Raises:
        ValueError: it does not; the message names the file.
    """
    entries = read_header(file)
    with safe_open(file, framework="pt") as opened:
        text = (opened.metadata() or {}).get(CUSTOM_METADATA_KEY)
    if not text:
        return
    try:
        info = json.loads(text)
        offsets = {name: info[name][SAVED_OFFSETS_KEY] for name in entries}
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise ValueError(
            f"{file} is damaged: it does not say where its shards belong ({CUSTOM_METADATA_KEY})"
        ) from None
    for name, offset in offsets.items():
        if not isinstance(offset, list) or len(offset) != len(entries[name].shape) or not all(map(_is_offset, offset)):
            raise ValueError(f"{file} is damaged: the offsets of {name} are {offset!r:.80}")


def check_whole(metadata: Metadata, folder: Path) -> None:
    """Check that the shards of all files make whole tensors.

    Raises:
        ValueError: a part of a tensor is missing, or in several shards; the message names the tensor.
    """
    for name, entry in metadata.state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata), "the files hold only tensors"
        if sum(prod(chunk.sizes) for chunk in entry.chunks) != prod(entry.size):
            raise ValueError(f"{folder} is damaged: the shards of {name} are not the whole tensor")


def _is_offset(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST_OFFSET
