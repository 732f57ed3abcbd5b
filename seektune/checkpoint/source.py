"""Sources of an export's tensors: a checkpoint folder in any format, or a model's state dict."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from seektune.checkpoint.files import TensorFiles
from seektune.checkpoint.formats import PLAIN, QUANTIZED, Quantized, kind_on_disk, unknown_kind
from seektune.checkpoint.lowbit import from_parameters, lowbit_names
from seektune.checkpoint.names import SCALE, Shape, Slot, scale_name, slots
from seektune.checkpoint.nvfp4 import NVFP4, decode, decoded_shape, is_nvfp4, stored_names, weight_beside
from seektune.checkpoint.stored import Stored

KINDS = {dtype: kind for kind, dtype in PLAIN.items()}
"""The kind that stores a tensor of each dtype unchanged."""


class Source(Protocol):
    """Tensors by released name."""

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """Name and decoded shape of every tensor (without scales)."""
        ...

    def stored(self, name: str) -> Stored:
        """The tensor in the encoding of the source."""
        ...


class StateSource:
    """A model's state dict by released names; quantized weights stay quantized."""

    def __init__(self, state: Mapping[str, Tensor]):
        self._state = state
        self._scales = lowbit_names(state)
        weights = {name: tuple(x.shape) for name, x in state.items() if name not in set(self._scales.values())}
        self._slots = {slot.released: slot for slot in slots(weights)}

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """In the order of the state dict."""
        return ((name, self._shape(slot)) for name, slot in self._slots.items())

    def stored(self, name: str) -> Stored:
        """The tensor, or the expert's slice of it."""
        slot = self._slots[name]
        tensor = self._part(slot.model, slot)
        if slot.model in self._scales:
            return from_parameters(tensor, self._part(self._scales[slot.model], slot))
        return Stored(KINDS[tensor.dtype], tensor)

    def _part(self, name: str, slot: Slot) -> Tensor:
        tensor = self._state[name].detach()
        return tensor if slot.expert is None else tensor[slot.expert]

    def _shape(self, slot: Slot) -> Shape:
        return self.stored(slot.released).shape if slot.model in self._scales else slot.shape


class FolderSource:
    """A checkpoint folder; `kind` and `stored` give what is on disk, so that it can be copied unchanged.

    Raises:
        ValueError: the folder or a file of it is unreadable, or a tensor has a dtype that no format uses.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = TensorFiles(folder)
        self._names = self.files.names()
        self._kinds = {name: self._kind(name) for name in sorted(self._names) if not self._is_scale(name)}

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """In the order of the release: embedding, layers, head, MTP."""
        for name in sorted(self._kinds, key=_released_order):
            if self.kind(name) == NVFP4:
                yield name, decoded_shape(name, self._dtype, self.files.shape)
                continue
            shape = self.files.shape(name)
            quantized = QUANTIZED.get(self.kind(name))
            yield name, shape if quantized is None else (*shape[:-1], shape[-1] * quantized.packing)

    def kind(self, name: str) -> str:
        """The kind of the tensor on disk.

        Raises:
            ValueError: the folder lacks it.
        """
        if name not in self._kinds:
            raise ValueError(f"{self.folder} lacks {name}")
        return self._kinds[name]

    def holds(self, name: str) -> bool:
        """Whether the folder has a tensor of that name."""
        return name in self._kinds

    def values(self, name: str, rows: slice | None = None) -> Tensor:
        """Decoded values: fp32 of a quantized weight, otherwise as stored. With `rows`, only start to stop are read."""
        if rows is None:
            return self.stored(name).values()
        kind = self.kind(name)
        if kind == NVFP4:
            return self.stored(name).values()[rows]
        if kind not in QUANTIZED:
            return self.files.read(name, rows)
        # the rows of a block share a scale, so decoding starts at a block; the rows above the wanted ones stay zero
        height = QUANTIZED[kind].block[0]
        block, above = divmod(rows.start, height)
        read = self.files.read(name, rows)
        weight = read.new_zeros(above + len(read), *read.shape[1:])
        weight[above:] = read
        scale = self.files.read(scale_name(name), slice(block, -(-rows.stop // height)))
        return Stored(kind, weight, scale).values()[above:]

    def stored(self, name: str) -> Stored:
        """The tensor as stored, with its scales if it has any; decoded if it is NVFP4."""
        if self.kind(name) == NVFP4:
            return Stored("f32", decode(name, self.files.read), decoded=True)
        return Stored(self.kind(name), *(self.files.read(each) for each in self._stored_names(name)))

    def size(self, name: str) -> int:
        """Bytes on disk, scales included."""
        return sum(self.files.size(each) for each in self._stored_names(name))

    def _stored_names(self, name: str) -> list[str]:
        if self.kind(name) == NVFP4:
            return stored_names(name)
        return [name, scale_name(name)] if self.kind(name) in QUANTIZED else [name]

    def _is_scale(self, name: str) -> bool:
        if (weight := weight_beside(name)) is not None:
            return is_nvfp4(weight, self._dtype)
        return name.endswith(SCALE) and name.removesuffix(SCALE) + ".weight" in self._names

    def _dtype(self, name: str) -> str | None:
        return self.files.dtype(name) if name in self._names else None

    def _kind(self, name: str) -> str:
        if is_nvfp4(name, self._dtype):
            decoded_shape(name, self._dtype, self.files.shape)
            return NVFP4
        scale = scale_name(name)
        paired = name.endswith(".weight") and scale in self._names
        dtype = self.files.dtype(name)
        scale_dtype = self.files.dtype(scale) if paired else None
        kind = kind_on_disk(dtype, scale_dtype)
        if kind is None and name.endswith(SCALE):
            raise ValueError(f"{self.files.where(name)} has no matching {name.removesuffix(SCALE)}.weight")
        if kind is None:
            raise ValueError(f"{self.files.where(name)} has {unknown_kind(name, dtype, scale_dtype, self._names)}")
        if kind in QUANTIZED:
            self._check_scales(name, QUANTIZED[kind])
        return kind

    def _check_scales(self, name: str, quantized: Quantized) -> None:
        weight = self.files.shape(name)
        scale = self.files.shape(scale_name(name))
        if len(weight) != 2 or quantized.scale_shape(weight) != scale:
            raise ValueError(
                f"{self.files.where(name)} has shape {list(weight)}, which does not match the shape {list(scale)} "
                f"of its scales, {scale_name(name)}"
            )


def _released_order(name: str) -> tuple[object, ...]:
    """Sort key: embedding, layers by number, head and norm, MTP; experts by number within a layer."""
    parts = name.split(".")
    place = {"embed": 0, "layers": 1, "mtp": 3}.get(parts[0], 2)
    return place, [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
