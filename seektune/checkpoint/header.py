"""Read and write safetensors headers: names, dtypes, shapes and offsets of tensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from seektune.checkpoint.names import Shape, check_name
from seektune.io.regular_file import open_regular
from seektune.io.tensor_names import LENGTH_BYTES
from seektune.io.text import on_one_line

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
"""safetensors' names of dtypes."""

MOST_DIMS = 8
"""Of a stored tensor; a model's have three at most."""


@dataclass(frozen=True)
class TensorEntry:
    """One stored tensor."""

    dtype: str
    """safetensors' name: `F8_E4M3`, `I8`, `BF16`, ..."""
    shape: Shape
    start: int
    """Offset of the first byte in the file."""
    size: int
    """Number of bytes."""
    name: str
    """The name in the file."""


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of a file by name.

    Raises:
        ValueError: the file is missing, not a regular file, unreadable, damaged or truncated.
    """
    try:
        with open_regular(file) as opened:
            # safe_open validates the file: lengths, dtypes, and offsets without gaps up to the last byte
            with safe_open(file, framework="pt"):
                pass
            length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
            header = json.loads(opened.read(length))
    except FileNotFoundError:
        raise ValueError(f"{file} is missing; the checkpoint is incomplete") from None
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or truncated: {on_one_line(str(error)[:300])}") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    header.pop("__metadata__", None)
    _check(header, file)
    return {name: _entry(name, LENGTH_BYTES + length, values) for name, values in header.items()}


def header_bytes(tensors: Mapping[str, tuple[torch.dtype, Shape]]) -> bytes:
    """Length and header of a file that stores tensors of these dtypes and shapes in order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size = dtype.itemsize * prod(shape)
        entries[name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _check(entries: Mapping[str, dict[str, Any]], file: Path) -> None:
    """Check what the library does not: names, and the number of dims, which messages show."""
    for name, values in entries.items():
        check_name(name, file)
        if len(values["shape"]) > MOST_DIMS:
            raise ValueError(f"{file} is damaged: {name} has more than {MOST_DIMS} dims")


def _entry(name: str, data: int, values: dict[str, Any]) -> TensorEntry:
    begin, end = values["data_offsets"]
    return TensorEntry(values["dtype"], tuple(values["shape"]), data + begin, end - begin, name)
