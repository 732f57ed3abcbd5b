"""A reader of safetensors files written for the tests from the format's definition, independent of the project's."""

import json
from pathlib import Path

Tensors = dict[str, tuple[str, list[int], bytes]]


def raw(folder: Path) -> Tensors:
    """Dtype, shape and bytes of every tensor."""
    tensors = {}
    for file in sorted(folder.glob("model*.safetensors")):
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8 : 8 + size]).items():
            if name != "__metadata__":
                assert name not in tensors, f"{name} is stored twice"
                start, stop = (8 + size + offset for offset in entry["data_offsets"])
                tensors[name] = entry["dtype"], entry["shape"], content[start:stop]
    return tensors


def dtypes_and_shapes(tensors: Tensors) -> dict[str, tuple[str, list[int]]]:
    """Dtype and shape of every tensor."""
    return {name: (dtype, shape) for name, (dtype, shape, _) in tensors.items()}


def read_files(folder: Path) -> dict[str, bytes]:
    """The content of every file."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
