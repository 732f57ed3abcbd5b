"""Layer streaming: frozen weights stay in the checkpoint's files and come in one block ahead of their use.

A model larger than memory is trained so, with adapters: forward walks through the files once, backward once more in
reverse. What the process holds is one block's pages and those that are being fetched.
"""

from pathlib import Path

from torch import Tensor, nn

from seektune.checkpoint.load import check_names
from seektune.checkpoint.lowbit import lowbit_names
from seektune.checkpoint.mmap import MmapFolder, PagePrefetcher, Region
from seektune.checkpoint.names import slots
from seektune.model.quantized import QuantizedLinear, QuantizedMatrix, QuantizedWeight


def stream_from_disk(model: nn.Module, folder: Path, blocks: list[nn.Module], ahead: bool = True) -> None:
    """Leave the quantized weights of a model on the meta device in their files, and read the rest.

    Weights that stand in the file in the model's dtype, such as embedding and head, are views of it too.

    Args:
        model: quantized, on the meta device.
        folder: its checkpoint.
        blocks: in the order of forward; each is fetched while the one before works.
        ahead: False reads only when a weight is used, for comparison.

    Raises:
        ValueError: the checkpoint does not fit the model.
    """
    files = MmapFolder(folder)
    weights = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedWeight)}
    quantized = {name: module for name, module in weights.items() if module.scale is not None}
    names = {name: _released(name, module) for name, module in quantized.items()}
    for name, module in quantized.items():
        found = [files.stored(each) for each in names[name]]
        module.parts = [(stored.weight, stored.scale) for stored in found]
    _fill(model, files, folder)
    places = {module: index for index, module in enumerate(blocks)}
    held: list[list[Region]] = [[] for _ in blocks]
    for block, index in places.items():
        inside = set(block.modules())
        held[index] = files.regions(
            each for name, module in quantized.items() if module in inside for each in names[name]
        )
    _watch(blocks, held, PagePrefetcher(ahead))


def _released(name: str, module: QuantizedWeight) -> list[str]:
    if isinstance(module, QuantizedMatrix):
        experts, _, matrix = name.rpartition(".")
        return [f"{experts}.{expert}.{matrix}.weight" for expert in range(len(module.weight))]
    assert isinstance(module, QuantizedLinear)
    return [f"{name}.weight"]


def _fill(model: nn.Module, files: MmapFolder, folder: Path) -> None:
    """Everything that is not streamed: views of the file where it is stored as the model has it, copies elsewhere."""
    state = model.state_dict()
    low = lowbit_names(state)
    plain = {name: x for name, x in state.items() if name not in low and name not in set(low.values())}
    wanted = list(slots({name: tuple(x.shape) for name, x in state.items() if name not in set(low.values())}))
    check_names(files.source, wanted, folder)
    for slot in wanted:
        if slot.model in low:
            continue
        target = plain[slot.model]
        if slot.expert is not None:
            raise ValueError(f"{slot.released} is not FP4 or FP8 in {folder}; only such experts can be streamed")
        _put(model, slot.model, files.stored(slot.released).values().to(target.dtype))


def _put(model: nn.Module, name: str, values: Tensor) -> None:
    """Replace a parameter or buffer on the meta device."""
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    if leaf in dict(module.named_parameters(recurse=False)):
        module.register_parameter(leaf, nn.Parameter(values, requires_grad=False))
    else:
        module.register_buffer(leaf, values)


def _watch(blocks: list[nn.Module], held: list[list[Region]], pager: PagePrefetcher) -> None:
    """Have each block's pages fetched while its neighbour works, and given back when the next begins."""

    def entering(index: int, step: int) -> None:
        if 0 <= index - step < len(blocks):
            pager.release(held[index - step])
        if 0 <= index + step < len(blocks):
            pager.prefetch(held[index + step])

    def leaving(place: int, streams: Tensor) -> None:
        # the gradient of a block's output is there just before its backward begins
        if streams.requires_grad:
            streams.register_hook(lambda _: entering(place, -1))

    for place, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, place=place: entering(place, 1))
        block.register_forward_hook(lambda _m, _i, streams, place=place: leaving(place, streams))
