"""Layer streaming: frozen weights stay in the checkpoint's files and are prefetched one block ahead of their use.

This trains models larger than memory with LoRA: forward reads the files once, backward once more in reverse. The
process holds the pages of one block and those that are being prefetched; a GPU holds copies of as many.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from seektune.checkpoint.load import check_names
from seektune.checkpoint.lowbit import lowbit_names
from seektune.checkpoint.mmap import MmapFolder, PagePrefetcher, Region
from seektune.checkpoint.names import Shape, slots
from seektune.checkpoint.stored import all_finite
from seektune.model.device_copies import BlockCopies, Copier, CudaCopyStream
from seektune.model.quantized import QuantizedLinear, QuantizedMatrix, QuantizedWeight
from seektune.model.streamed_parts import StreamedParts


def stream_from_disk(
    model: nn.Module,
    folder: Path,
    blocks: list[nn.Module],
    ahead: bool = True,
    complete: Mapping[str, Shape] | None = None,
    device: torch.device | str = "cpu",
    copier: Copier | None = None,
) -> None:
    """Map the quantized weights of a model to their files, and load the rest.

    Weights that are stored in the model's dtype, such as embedding and head, become views of the file too.

    Args:
        model: a quantized model on the meta device.
        folder: its checkpoint.
        blocks: in forward order; each is prefetched while the previous one computes.
        complete: names and shapes of all tensors of the checkpoint, if the model lacks some.
        ahead: prefetch; if False, weights are read when they are used, for comparison.
        device: that computes; what is not streamed is loaded there.
        copier: copies the weights of the next block to the device while one computes; made for a GPU if None.

    Raises:
        ValueError: the checkpoint does not fit the model.
    """
    files = MmapFolder(folder)
    weights = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedWeight)}
    quantized = {name: module for name, module in weights.items() if module.scale is not None}
    names = {name: _released_names(name, module) for name, module in quantized.items()}
    for name, module in quantized.items():
        tensors = [files.stored(each) for each in names[name]]
        module.parts = StreamedParts([(stored.weight, stored.scale) for stored in tensors], torch.device(device))
    _load_rest(model, files, folder, complete, torch.device(device))
    regions: list[list[Region]] = []
    for block in blocks:
        inside = set(block.modules())
        regions.append(
            files.regions(each for name, module in quantized.items() if module in inside for each in names[name])
        )
    _register_hooks(blocks, regions, PagePrefetcher(ahead))
    if copier is None and torch.device(device).type == "cuda":
        copier = Copier(CudaCopyStream(torch.device(device)))
    if copier is not None:
        _register_copies(blocks, BlockCopies(blocks, copier))


def _released_names(name: str, module: QuantizedWeight) -> list[str]:
    if isinstance(module, QuantizedMatrix):
        experts, _, matrix = name.rpartition(".")
        return [f"{experts}.{expert}.{matrix}.weight" for expert in range(len(module.weight))]
    assert isinstance(module, QuantizedLinear)
    return [f"{name}.weight"]


def _load_rest(
    model: nn.Module, files: MmapFolder, folder: Path, complete: Mapping[str, Shape] | None, device: torch.device
) -> None:
    """Load everything that is not streamed: views of the file if the dtypes agree, copies otherwise."""
    state = model.state_dict()
    low = lowbit_names(state)
    plain = {name: x for name, x in state.items() if name not in low and name not in set(low.values())}
    wanted = list(slots({name: tuple(x.shape) for name, x in state.items() if name not in set(low.values())}))
    check_names(files.source, wanted if complete is None else slots(complete), folder)
    for slot in wanted:
        if slot.model in low:
            continue
        target = plain[slot.model]
        if slot.expert is not None:
            raise ValueError(f"{slot.released} in {folder} is not FP4 or FP8; only such experts can be streamed")
        values = files.stored(slot.released).values()
        if not all_finite(values):
            raise ValueError(f"{files.source.files.where(slot.released)} holds NaN or infinity; the file is damaged")
        _set_tensor(model, slot.model, values.to(device, target.dtype))


def _set_tensor(model: nn.Module, name: str, values: Tensor) -> None:
    """Replace a parameter or buffer on the meta device."""
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    if leaf in dict(module.named_parameters(recurse=False)):
        module.register_parameter(leaf, nn.Parameter(values, requires_grad=False))
    else:
        module.register_buffer(leaf, values)


def _register_hooks(blocks: list[nn.Module], regions: list[list[Region]], prefetcher: PagePrefetcher) -> None:
    """Prefetch the pages of the next block when a block begins, and release those of the previous one."""

    def begin(index: int, step: int) -> None:
        if 0 <= index - step < len(blocks):
            prefetcher.release(regions[index - step])
        if 0 <= index + step < len(blocks):
            prefetcher.prefetch(regions[index + step])

    _call_at_begin(blocks, begin)


def _register_copies(blocks: list[nn.Module], copies: BlockCopies) -> None:
    """Copy the weights of the next block to the device when a block begins, and drop those of all others."""

    def begin(index: int, step: int) -> None:
        copies.drop_others(index, index + step)
        copies.start(index)
        if 0 <= index + step < len(blocks):
            copies.start(index + step)
        copies.use(index)

    _call_at_begin(blocks, begin)
    for index, block in enumerate(blocks):
        # hooks of a module are outside of the recomputation of its forward, which saves by itself
        block.register_forward_pre_hook(lambda *_, index=index: copies.begin_saving(index))
        block.register_forward_hook(lambda *_: copies.end_saving(), always_call=True)


def _call_at_begin(blocks: list[nn.Module], begin: Callable[[int, int], None]) -> None:
    """Call `begin` with the number of a block, and 1 before its forward or -1 before its backward."""

    def watch_backward(index: int, streams: Tensor) -> None:
        # the gradient of a block's output is computed just before the block's backward begins
        if streams.requires_grad:
            streams.register_hook(lambda _: begin(index, -1))

    for index, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, index=index: begin(index, 1))
        block.register_forward_hook(lambda _m, _i, streams, index=index: watch_backward(index, streams))
