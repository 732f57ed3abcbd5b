"""Copies of streamed weights on the device that computes: pinned buffers, a stream and a thread.

A block's copies are started while the block before it computes, and dropped when it is over. What backward needs of
them is not kept: saved tensors become references, and backward's own copies take their place.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from seektune.model.quantized import QuantizedWeight
from seektune.model.streamed_parts import StreamedParts

ALIGNED = 256
"""Bytes to whose multiples tensors are placed in a buffer, for vector loads."""
BUFFERS = 2
"""Pinned buffers: one is filled from the file while the other is sent."""


class CopyStream(Protocol):
    """Copies to a device that run beside its computation."""

    def pinned_buffer(self, size: int) -> Tensor:
        """Pinned memory of the host, from which copies do not block; uint8."""
        ...

    def device_buffer(self, size: int) -> Tensor:
        """Memory of the device; uint8."""
        ...

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Start a copy, after those that were started before."""
        ...

    def record_event(self) -> Any:
        """An event after all copies that were started."""
        ...

    def wait_event(self, event: Any, tensors: Iterable[Tensor]) -> None:
        """Let later computation wait for an event, and keep the tensors until that computation is done."""
        ...

    def synchronize(self, event: Any) -> None:
        """Wait on the host for an event."""
        ...


class CudaCopyStream:
    """A stream of a GPU."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def pinned_buffer(self, size: int) -> Tensor:
        """As `CopyStream`."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def device_buffer(self, size: int) -> Tensor:
        """As `CopyStream`."""
        with torch.cuda.stream(self._stream):
            return torch.empty(size, dtype=torch.uint8, device=self._device)

    def copy(self, target: Tensor, source: Tensor) -> None:
        """As `CopyStream`."""
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def record_event(self) -> torch.cuda.Event:
        """As `CopyStream`."""
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def wait_event(self, event: torch.cuda.Event, tensors: Iterable[Tensor]) -> None:
        """As `CopyStream`."""
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(event)
        for tensor in tensors:
            tensor.record_stream(computing)

    def synchronize(self, event: torch.cuda.Event) -> None:
        """As `CopyStream`."""
        event.synchronize()


class Copier:
    """Copies tensors through pinned buffers, in the order of the calls."""

    def __init__(self, stream: CopyStream):
        self._stream = stream
        self._thread = ThreadPoolExecutor(1, "device-copies")
        self._buffers = cycle([_Buffer() for _ in range(BUFFERS)])

    def start(self, sources: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Start copying and return at once; what is returned waits, and gives the copies."""
        copying = self._thread.submit(self._copy, list(sources))

        def wait() -> list[Tensor]:
            copies, event = copying.result()
            self._stream.wait_event(event, copies)
            return copies

        return wait

    def _copy(self, sources: list[Tensor]) -> tuple[list[Tensor], Any]:
        buffer = next(self._buffers)
        if buffer.sent is not None:
            self._stream.synchronize(buffer.sent)
        ends = [0]
        for source in sources:
            ends.append(ends[-1] + -(-source.nbytes // ALIGNED) * ALIGNED)
        if buffer.memory is None or buffer.memory.numel() < ends[-1]:
            buffer.memory = self._stream.pinned_buffer(ends[-1])
        place = self._stream.device_buffer(ends[-1])
        copies = []
        for begin, source in zip(ends, sources, strict=False):
            here = slice(begin, begin + source.nbytes)
            # this reads the file
            buffer.memory[here].copy_(source.reshape(-1).view(torch.uint8))
            self._stream.copy(place[here], buffer.memory[here])
            copies.append(place[here].view(source.dtype).view(source.shape))
        buffer.sent = self._stream.record_event()
        return copies, buffer.sent


@dataclass
class _Buffer:
    memory: Tensor | None = None
    sent: Any = None


class BlockCopies:
    """The copies of the weights of blocks."""

    def __init__(self, blocks: Sequence[nn.Module], copier: Copier):
        self._blocks = blocks
        self._copier = copier
        self._waiting: dict[int, Callable[[], list[Tensor]]] = {}
        self._saved: list[saved_tensors_hooks] = []

    def start(self, index: int) -> None:
        """Start copying a block's weights, unless they are there or on their way."""
        parts = self._parts(index)
        if index not in self._waiting and any(each.copies is None for each in parts):
            self._waiting[index] = self._copier.start([x for each in parts for x in each.tensors()])

    def use(self, index: int) -> None:
        """Have products use the copies from now on; waits for them."""
        self.start(index)
        if index in self._waiting:
            copies = iter(self._waiting.pop(index)())
            for each in self._parts(index):
                each.use(copies)

    def drop_others(self, first: int, second: int) -> None:
        """Free the copies of all blocks but two."""
        for index in set(range(len(self._blocks))) - {first, second}:
            self._waiting.pop(index, None)
            for each in self._parts(index):
                each.copies = None

    def begin_saving(self, index: int) -> None:
        """Save references in place of copies for backward, in what this block computes from now on."""
        known = {id(x): (each, place) for each in self._parts(index) for place, x in enumerate(each.tensors())}

        def unpack(kept: Any) -> Tensor:
            return kept if isinstance(kept, Tensor) else kept[0].tensors()[kept[1]]

        def pack(x: Tensor) -> Any:
            # an operation that saves its own result would keep itself alive through `x`
            return known.get(id(x)) or x.detach()

        self._saved.append(saved_tensors_hooks(pack, unpack))
        self._saved[-1].__enter__()

    def end_saving(self) -> None:
        """Undo `begin_saving`, also after an error."""
        self._saved.pop().__exit__(None, None, None)

    def _parts(self, index: int) -> list[StreamedParts]:
        """Of the modules that are in the block now: adapters take the place of those that were."""
        modules = (each for each in self._blocks[index].modules() if isinstance(each, QuantizedWeight))
        return [module.parts for module in modules if module.parts is not None]
