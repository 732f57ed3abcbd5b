"""Scan the headers of a checkpoint folder, and compare them with what a model needs.

Unlike the loaders, a scan does not stop at the first fault: it is meant for damaged folders.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from seektune.checkpoint.carried import carried_names
from seektune.checkpoint.files import no_weights, read_index, read_listed_header
from seektune.checkpoint.formats import FORMATS, QUANTIZED, READABLE, kind_of_header, kind_on_disk, unknown_kind
from seektune.checkpoint.header import TensorEntry
from seektune.checkpoint.names import SCALE, Shape, scale_name, slots
from seektune.checkpoint.nvfp4 import NVFP4, decoded_shape, is_nvfp4, weight_beside
from seektune.checkpoint.released_entries import released_entries
from seektune.io.other_formats import other_format
from seektune.io.tensor_names import INDEX, SINGLE


@dataclass(frozen=True)
class FolderScan:
    """The readable tensors of a folder, its files, and what is wrong with them."""

    tensors: dict[str, TensorEntry]
    """By released name."""
    files: dict[str, int]
    """Bytes of each existing weight file, damaged ones included."""
    strays: list[str]
    """Other safetensors files, which no loader reads."""
    problems: list[str]
    """Messages about missing or damaged files, and about tensors that the index places wrongly."""

    def kind(self, name: str) -> str | None:
        """The kind of a tensor; None if no format has it, or for a tensor of scales."""
        if is_nvfp4(name, self.dtype):
            return NVFP4
        return kind_on_disk(self.tensors[name].dtype, self.scale_dtype(name))

    def scale_dtype(self, name: str) -> str | None:
        """The dtype of a weight's scales; None if it has none."""
        scale = self.tensors.get(scale_name(name)) if name.endswith(".weight") else None
        return None if scale is None else scale.dtype

    def is_scale(self, name: str) -> bool:
        """Whether the tensor holds the scales of a weight in the folder."""
        if (weight := weight_beside(name)) is not None:
            return is_nvfp4(weight, self.dtype)
        return name.endswith(SCALE) and f"{name.removesuffix(SCALE)}.weight" in self.tensors

    def weights(self) -> list[str]:
        """All names except those of scales."""
        return [name for name in self.tensors if not self.is_scale(name)]

    def shape(self, name: str) -> Shape:
        """The stored shape of a tensor."""
        return self.tensors[name].shape

    def dtype(self, name: str) -> str | None:
        """safetensors' dtype of a tensor; None if there is none of that name."""
        return self.tensors[name].dtype if name in self.tensors else None


@dataclass(frozen=True)
class Mismatch:
    """How a folder differs from what a model needs."""

    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Messages about tensors whose shape or dtype the model cannot load."""


def scan(folder: Path) -> FolderScan:
    """Read every header of a folder.

    Raises:
        ValueError: it is not a folder.
    """
    if not folder.is_dir():
        raise ValueError(other_format(folder) or f"{folder} is not a folder")
    problems: list[str] = []
    # a link that leads nowhere has no size; it is a problem only if a loader needs it
    present = {file.name: file.stat().st_size if file.exists() else 0 for file in sorted(folder.glob("*.safetensors"))}
    placed = _placed(folder, problems)
    files = sorted(set(placed.values())) or ([SINGLE] if SINGLE in present else list(present))
    tensors: dict[str, TensorEntry] = {}
    for file in files:
        try:
            entries = read_listed_header(folder / file)
        except ValueError as error:
            problems.append(str(error))
            continue
        tensors |= entries
        if placed:
            problems += _misplaced(placed, file, entries)
    try:
        tensors = released_entries(tensors, folder)
    except ValueError as error:
        problems.append(str(error))
    sizes = {file: present[file] for file in files if file in present}
    return FolderScan(tensors, sizes, [file for file in present if file not in files], problems)


def mismatch(found: FolderScan, shapes: Mapping[str, Shape]) -> Mismatch:
    """Compare a scan with the names and shapes of a model's state dict."""
    out = Mismatch()
    expected = {slot.released: slot.shape for slot in slots(shapes)}
    for name, shape in expected.items():
        if name not in found.tensors:
            out.missing.append(name)
        elif (fault := _fault(found, name, tuple(shape))) is not None:
            out.wrong.append(fault)
    known = expected.keys() | {scale_name(name) for name in expected if name.endswith(".weight")}
    beside = {name for name in found.tensors if weight_beside(name) in expected and found.is_scale(name)}
    out.extra.extend(name for name in found.tensors if name not in known and name not in beside)
    return out


def format_of(found: FolderScan) -> str | None:
    """The format of `READABLE` in which all tensors but DSpark stages are stored; `nvfp4` if some are
    stored so; None if no single one matches."""
    weights = found.weights()
    carried = carried_names(weights)
    kinds = {name: found.kind(name) for name in weights if name not in carried}
    if NVFP4 in kinds.values():
        return NVFP4
    fitting = [
        name
        for name, format in READABLE.items()
        if all(kind_of_header(format.kind(tensor)) == kind for tensor, kind in kinds.items())
    ]
    return fitting[0] if kinds and fitting else None


def _placed(folder: Path, problems: list[str]) -> dict[str, str]:
    """File of each tensor by the index; empty if there is no index that can be read."""
    if not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            problems.append(no_weights(folder))
        return {}
    try:
        return read_index(folder)
    except ValueError as error:
        problems.append(str(error))
        return {}


def _misplaced(placed: Mapping[str, str], file: str, entries: Mapping[str, TensorEntry]) -> Iterator[str]:
    """Messages about tensors on which a file and the index disagree."""
    for name in entries:
        if name not in placed:
            yield f"{file} holds {name}, which {INDEX} does not list"
        elif placed[name] != file:
            yield f"{file} holds {name}, which {INDEX} places in {placed[name]}"
    yield from (
        f"{file} lacks {name}, which {INDEX} lists in it"
        for name, at in placed.items()
        if at == file and name not in entries
    )


def _fault(found: FolderScan, name: str, shape: Shape) -> str | None:
    entry = found.tensors[name]
    kind = found.kind(name)
    if kind is None:
        return f"{name} has {unknown_kind(name, entry.dtype, found.scale_dtype(name), found.tensors)}"
    if (kind == "i64") != (FORMATS["fp32"].kind(name) == "i64"):
        return f"{name} has dtype {entry.dtype}, which no format uses for it"
    if kind == NVFP4:
        return _nvfp4_fault(found, name, shape)
    if kind not in QUANTIZED:
        return None if entry.shape == shape else f"{name} has shape {list(entry.shape)} instead of {list(shape)}"
    if len(shape) != 2:
        return f"{name} has dtype {entry.dtype}, which only matrices can have"
    for each, right in zip((name, scale_name(name)), QUANTIZED[kind].shapes(shape), strict=True):
        if found.tensors[each].shape != right:
            return f"{each} has shape {list(found.tensors[each].shape)} instead of {list(right)}"
    return None


def _nvfp4_fault(found: FolderScan, name: str, shape: Shape) -> str | None:
    try:
        values = decoded_shape(name, found.dtype, found.shape)
    except ValueError as error:
        return str(error)
    return None if values == shape else f"{name} holds values of shape {list(values)} instead of {list(shape)}"
