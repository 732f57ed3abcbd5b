"""Checkpoint files read by hand from the definition of safetensors, so that no reader of the project judges itself."""

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
                assert name not in tensors, f"{name} stands twice"
                start, stop = (8 + size + offset for offset in entry["data_offsets"])
                tensors[name] = entry["dtype"], entry["shape"], content[start:stop]
    return tensors


def kinds(tensors: Tensors) -> dict[str, tuple[str, list[int]]]:
    """Dtype and shape."""
    return {name: (dtype, shape) for name, (dtype, shape, _) in tensors.items()}


def files(folder: Path) -> dict[str, bytes]:
    """Every file's content."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
