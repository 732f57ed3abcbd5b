"""What a safetensors file holds and where, without reading a weight."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from seektune.checkpoint.names import Shape

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""How safetensors spells a dtype."""

_LENGTH = 8
"""The file begins with the header's length in so many bytes, little end first."""


@dataclass(frozen=True)
class TensorEntry:
    """One stored tensor."""

    dtype: str
    """As safetensors spells it: `F8_E4M3`, `I8`, `BF16`, ..."""
    shape: Shape
    start: int
    """First byte in the file."""
    size: int
    """Bytes."""


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of a file by name.

    Raises:
        ValueError: the file is missing, unreadable, damaged or truncated.
    """
    try:
        with file.open("rb") as opened:
            # the library judges the file: lengths, dtypes, and offsets without gaps up to the last byte
            with safe_open(file, framework="pt"):
                pass
            length = int.from_bytes(opened.read(_LENGTH), "little")
            header = json.loads(opened.read(length))
    except FileNotFoundError:
        raise ValueError(f"{file} is missing; the checkpoint is incomplete") from None
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or truncated: {error}") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    header.pop("__metadata__", None)
    return {name: _entry(_LENGTH + length, values) for name, values in header.items()}


def header_bytes(tensors: Mapping[str, tuple[torch.dtype, Shape]]) -> bytes:
    """The beginning of a file that holds tensors of these dtypes and shapes, one after the other."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size = dtype.itemsize * prod(shape)
        entries[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)
    return len(text).to_bytes(_LENGTH, "little") + text


def _entry(data: int, values: dict[str, Any]) -> TensorEntry:
    begin, end = values["data_offsets"]
    return TensorEntry(values["dtype"], tuple(values["shape"]), data + begin, end - begin)
