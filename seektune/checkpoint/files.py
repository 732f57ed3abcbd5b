"""Read the safetensors files of a folder as one collection, with errors that name the tensor and the file."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from seektune.checkpoint.header import DTYPES, TensorEntry, read_header
from seektune.checkpoint.names import check_name
from seektune.checkpoint.released_entries import released_entries
from seektune.io.json_file import read_json
from seektune.io.other_formats import other_format
from seektune.io.tensor_names import INDEX, SINGLE

_TORCH = {spelled: dtype for dtype, spelled in DTYPES.items()}


class TensorFiles:
    """The tensors of a folder by released name; each is read from disk on request.

    Raises:
        ValueError: no weights, a damaged or missing file, or an index that disagrees with its files.
    """

    def __init__(self, folder: Path):
        files = {name: folder / file for name, file in read_index(folder).items()}
        headers = {file: read_listed_header(file) for file in sorted(set(files.values()))}
        for file, entries in headers.items():
            for name in entries.keys() - files.keys():
                raise ValueError(f"{file} holds {name}, which {INDEX} does not list")
        for name, file in files.items():
            if name not in headers[file]:
                raise ValueError(f"{file} lacks {name}, which {INDEX} lists in it")
        stored = {name: headers[file][name] for name, file in files.items()}
        self._entries: dict[str, TensorEntry] = released_entries(stored, folder)
        self._files = {name: files[entry.name] for name, entry in self._entries.items()}

    def names(self) -> set[str]:
        """All tensor names."""
        return set(self._entries)

    def where(self, name: str) -> str:
        """Tensor, by its name in the file, and file, for error messages."""
        return f"{self._entries[name].name} in {self._files[name]}"

    def dtype(self, name: str) -> str:
        """The dtype on disk by safetensors' name: `F8_E4M3`, `I8`, `BF16`, ..."""
        return self._entries[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape on disk."""
        return self._entries[name].shape

    def size(self, name: str) -> int:
        """Bytes on disk."""
        return self._entries[name].size

    def location(self, name: str) -> tuple[Path, int, int]:
        """File, offset of the first byte, and number of bytes."""
        entry = self._entries[name]
        return self._files[name], entry.start, entry.size

    def torch_dtype(self, name: str) -> torch.dtype:
        """The dtype on disk.

        Raises:
            ValueError: torch has no such dtype.
        """
        spelled = self._entries[name].dtype
        if spelled not in _TORCH:
            raise ValueError(f"{self.where(name)} has dtype {spelled}, which torch cannot read")
        return _TORCH[spelled]

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """The tensor as stored, or only `rows` (start to stop) of its first dim.

        Raises:
            ValueError: the file was truncated meanwhile, or torch has no such dtype.
            OSError: reading failed.
        """
        entry = self._entries[name]
        dtype = self.torch_dtype(name)
        shape = entry.shape
        start = entry.start
        size = entry.size
        if rows is not None:
            height = size // max(shape[0], 1)
            shape = (rows.stop - rows.start, *shape[1:])
            start = start + rows.start * height
            size = shape[0] * height
        # read rather than mapped: mapped pages of a large checkpoint would count as this process's memory
        buffer = torch.empty(size, dtype=torch.uint8)
        with self._files[name].open("rb", buffering=0) as file:
            file.seek(start)
            _fill(buffer.numpy().data, file.readinto, self.where(name))
        return buffer.view(dtype).reshape(shape)


def read_index(folder: Path) -> dict[str, str]:
    """The file of each tensor, from the folder's index or its only file.

    Raises:
        ValueError: there is neither, or it is damaged.
    """
    index = folder / INDEX
    if index.is_file():
        try:
            listed = read_json(index)["weight_map"]
            for name, file in listed.items():
                check_name(name, index)
                check_name(file, index)
                if Path(file).name != file:  # an index must not point outside its folder
                    raise TypeError(file)
            return dict(listed)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{index} is not an index of safetensors files (a JSON object with weight_map)") from None
    if not (folder / SINGLE).is_file():
        raise ValueError(no_weights(folder))
    return dict.fromkeys(read_header(folder / SINGLE), SINGLE)


def no_weights(folder: Path) -> str:
    """The sentence about a folder that has neither an index nor a single file."""
    if (other := other_format(folder)) is not None:
        return other
    if shards := sorted(file.name for file in folder.glob("model-*.safetensors")):
        return f"{folder} holds {shards[0]} but no {INDEX}, which lists the tensors of all shards; copy it there too"
    return f"{folder} holds no weights: neither {INDEX} nor {SINGLE}"


def read_listed_header(file: Path) -> dict[str, TensorEntry]:
    """As `read_header`, of a file that an index may name.

    Raises:
        ValueError: as `read_header`; the message says when the index itself looks stale.
    """
    single = file.with_name(SINGLE)
    stale = not file.exists() and file != single and single.is_file()
    try:
        return read_header(file)
    except ValueError as error:
        hint = f"; if {SINGLE} beside it is the checkpoint, remove {INDEX}" if stale else ""
        raise ValueError(f"{error}{hint}") from None


def _fill(wanted: memoryview, readinto: Callable[[memoryview], int | None], where: str) -> None:
    """Read until full: one system call returns at most 2 GB."""
    while wanted:
        if not (count := readinto(wanted)):
            raise ValueError(f"{where} ends too early; the file was changed while it was read")
        wanted = wanted[count:]
