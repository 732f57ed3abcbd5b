"""Reading the safetensors files of a folder as one collection, with errors that name the tensor and the file."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class TensorFiles:
    """The tensors of a folder by name, each read from disk when asked for.

    Raises:
        ValueError: no weights, a damaged or missing file, or an index that disagrees with its files.
    """

    def __init__(self, folder: Path):
        self._files = {name: folder / file for name, file in _index(folder).items()}
        self._open = {file: _open(file) for file in sorted(set(self._files.values()))}
        held = {file: set(opened.keys()) for file, opened in self._open.items()}
        for file, names in held.items():
            for name in names - self._files.keys():
                raise ValueError(f"{file} holds {name}, which {INDEX} does not list")
        for name, file in self._files.items():
            if name not in held[file]:
                raise ValueError(f"{file} lacks {name}, which {INDEX} promises there")

    def names(self) -> set[str]:
        """All tensor names."""
        return set(self._files)

    def where(self, name: str) -> str:
        """Tensor and file, for a message."""
        return f"{name} in {self._files[name]}"

    def dtype(self, name: str) -> str:
        """The dtype on disk as safetensors spells it: `F8_E4M3`, `I8`, `BF16`, ..."""
        return str(self._open[self._files[name]].get_slice(name).get_dtype())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape on disk."""
        return tuple(self._open[self._files[name]].get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """The tensor as it is on disk."""
        try:
            return self._open[self._files[name]].get_tensor(name)
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"cannot read {self.where(name)}: {error}") from None


def _index(folder: Path) -> dict[str, str]:
    """File of each tensor."""
    index = folder / INDEX
    if index.is_file():
        try:
            listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {str(name): _plain_name(file) for name, file in listed.items()}
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{index} is not an index of safetensors files (a JSON object with weight_map)") from None
    if not (folder / SINGLE).is_file():
        raise ValueError(f"{folder} holds no weights: neither {INDEX} nor {SINGLE}")
    return dict.fromkeys(_open(folder / SINGLE).keys(), SINGLE)


def _plain_name(file: str) -> str:
    """A file of the folder itself; an index must not lead elsewhere."""
    if not isinstance(file, str) or Path(file).name != file:
        raise TypeError(file)
    return file


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except FileNotFoundError:
        raise ValueError(f"{file} is missing; the checkpoint is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged or truncated: {error}") from None
