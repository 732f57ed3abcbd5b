"""The stored tensors of a folder under their released names, whichever tool's names are in its files.

transformers' names are translated, and its stacked experts are cut into one entry per matrix: their bytes are those of
the release's matrices, one after the other. Nothing is read or copied for this.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from seektune.checkpoint.header import TensorEntry
from seektune.checkpoint.other_models import check_model
from seektune.checkpoint.transformers_names import FUSED, released_tensor

MOST_EXPERTS = 2**14
"""In a stack, before each gets a name of its own; Pro has 384."""


def released_entries(stored: Mapping[str, TensorEntry], folder: Path) -> dict[str, TensorEntry]:
    """Entries by released name, from those by the names in the files.

    Raises:
        ValueError: two tensors have the same released name, stacked experts have an impossible shape, or a tensor
            belongs to another model.
    """
    check_model(stored, folder)
    out: dict[str, TensorEntry] = {}
    for name, entry in stored.items():
        for released, part in _released(name, entry, folder):
            if released in out:
                raise ValueError(f"{folder} holds {out[released].name} and {name}, two spellings of one tensor")
            out[released] = part
    return out


def _released(name: str, entry: TensorEntry, folder: Path) -> Iterator[tuple[str, TensorEntry]]:
    released = released_tensor(name)
    experts, _, end = released.rpartition(".")
    if released == name or end not in FUSED:
        yield released, entry
        return
    matrices = FUSED[end]
    if len(entry.shape) != 3 or not entry.size or entry.shape[1] % len(matrices):
        raise ValueError(f"{folder} holds {name} of shape {list(entry.shape)}, which no stack of experts has")
    count, rows, columns = entry.shape
    if count > MOST_EXPERTS:
        raise ValueError(f"{folder} holds {name} of {count:,} experts, more than any model has; the file is damaged")
    part = replace(entry, shape=(rows // len(matrices), columns), size=entry.size // count // len(matrices))
    starts = range(entry.start, entry.start + entry.size, part.size)
    names = (f"{experts}.{expert}.{matrix}.weight" for expert in range(count) for matrix in matrices)
    for each, start in zip(names, starts, strict=True):
        yield each, replace(part, start=start)
