"""Streamed weights are copied to a device ahead of their use, through pinned buffers, and not kept for backward."""

import gc
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seektune.checkpoint.source import FolderSource
from seektune.lora.initialize import init_adapters
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.targets import matching
from seektune.model.causal_lm import DeepseekV4ForCausalLM, checkpoint_shapes
from seektune.model.config import DeepseekV4Config
from seektune.model.device_copies import BlockCopies, Copier
from seektune.model.offload import stream_from_disk
from seektune.model.quantized import quantize_modules
from seektune.parallel.recompute import recompute_blocks
from tests.lora.test_inject import fill, outputs

TARGETS = ("attn", "ffn.experts")


class FakeCopyStream:
    """A device whose copies are made when they are waited for, as late as a GPU could make them."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._queue: list[tuple[Tensor, Tensor]] = []

    def pinned_buffer(self, size: int) -> Tensor:
        self.events.append("pinned")
        return torch.zeros(size, dtype=torch.uint8)

    def device_buffer(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.uint8)

    def copy(self, target: Tensor, source: Tensor) -> None:
        self.events.append("copy")
        self._queue.append((target, source))

    def record_event(self) -> int:
        return len(self.events)

    def wait_event(self, event: Any, tensors: Iterable[Tensor]) -> None:
        self._flush("wait_event")

    def synchronize(self, event: Any) -> None:
        self._flush("synchronize")

    def _flush(self, event: str) -> None:
        self.events.append(event)
        for target, source in self._queue:
            target.copy_(source)
        self._queue.clear()


def test_copies_equal_their_sources_and_buffers_are_used_again_when_they_are_sent():
    stream = FakeCopyStream()
    copier = Copier(stream)
    batches = [[torch.randn(size, 3), torch.randint(0, 9, (5,)).to(torch.float8_e4m3fn)] for size in (40, 40, 40, 400)]
    waits = [copier.start(batch) for batch in batches[:3]]
    for wait, batch in zip(waits, batches, strict=False):
        for copy, source in zip(wait(), batch, strict=True):
            assert torch.equal(copy.view(torch.uint8), source.view(torch.uint8))
            assert copy.data_ptr() != source.data_ptr()
    # two buffers; the third batch waits until the first buffer was sent
    assert stream.events.count("pinned") == 2
    assert stream.events.index("synchronize") > [n for n, event in enumerate(stream.events) if event == "copy"][3]
    copier.start(batches[3])()
    assert stream.events.count("pinned") == 3, "a larger batch needs a larger buffer"


class FakeCopier:
    """Records the order of operations, and what is alive of the copies."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.numbers: dict[int, int] = {}
        self.copies: list[list[weakref.ref[Tensor]]] = []

    def start(self, sources: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        block = self.numbers.setdefault(sources[0].data_ptr(), len(self.numbers))
        self.events.append(f"start {block}")

        def wait() -> list[Tensor]:
            self.events.append(f"wait {block}")
            made = [source.clone() for source in sources]
            self.copies.append([weakref.ref(copy) for copy in made])
            return made

        return wait

    def alive(self) -> int:
        """Blocks of which a copy is alive."""
        gc.collect()
        return sum(any(ref() is not None for ref in copies) for copies in self.copies)


def streamed(folder: Path, copier: FakeCopier | None, recompute: Any = "none") -> DeepseekV4ForCausalLM:
    """As `from_pretrained` streams a model, with adapters; None: the model in memory."""
    if copier is None:
        model = DeepseekV4ForCausalLM.from_pretrained(folder, torch.bfloat16, quantized=True)
    else:
        config = DeepseekV4Config.from_pretrained(folder)
        model = DeepseekV4ForCausalLM(config, "meta", torch.bfloat16)
        quantize_modules(model, FolderSource(folder).kind)
        copying: Any = copier
        stream_from_disk(model, folder, [*model.blocks()], complete=checkpoint_shapes(config), copier=copying)
    adapt(model, matching(model, TARGETS), AdapterShape(rank=2, alpha=4.0))
    init_adapters(model, 0)
    fill(model)
    recompute_blocks(model, recompute)
    return model


def gradients(model: DeepseekV4ForCausalLM) -> list[Tensor]:
    *values, loss = outputs(model)
    loss.backward()
    return [*values, *(p.grad for p in model.parameters() if p.requires_grad and p.grad is not None)]


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "block"])
def test_blocks_are_copied_one_ahead_and_equal_those_in_memory(parity_folder: Path, recompute: str):
    copier = FakeCopier()
    model = streamed(parity_folder, copier, recompute)
    *values, loss = outputs(model)
    blocks = len([*model.blocks()])
    ahead = [event for block in range(1, blocks) for event in (f"start {block}", f"wait {block - 1}")]
    assert copier.events == ["start 0", *ahead, f"wait {blocks - 1}"]
    assert copier.alive() == 1, "backward keeps references, not copies"
    copier.events.clear()
    loss.backward()
    last = blocks - 1
    back = [event for block in reversed(range(last)) for event in (f"start {block}", f"wait {block + 1}")]
    # the last block's copies are still there
    assert copier.events == [*(event for event in back if event != f"wait {last}"), "wait 0"]
    found = [*values, *(p.grad for p in model.parameters() if p.requires_grad and p.grad is not None)]
    for copied, expected in zip(found, gradients(streamed(parity_folder, None, recompute)), strict=True):
        assert torch.equal(copied, expected)


def test_a_graph_that_is_dropped_without_backward_is_freed():
    copies = BlockCopies([torch.nn.Linear(2, 2)], Copier(FakeCopyStream()))
    copies.begin_saving(0)
    saves_its_result = torch.ones(3, requires_grad=True).exp()
    copies.end_saving()
    result = weakref.ref(saves_its_result)
    del saves_its_result
    gc.collect()
    assert result() is None


@pytest.mark.slow
def test_an_error_in_a_block_leaves_no_hooks(parity_folder: Path):
    model = streamed(parity_folder, FakeCopier())
    block = next(iter(model.blocks()))
    with pytest.raises(TypeError):
        block(None, None, None)
    x = torch.ones(2, requires_grad=True)
    assert (x * x).grad_fn is not None
    expected = gradients(streamed(parity_folder, None))
    for copied, value in zip(gradients(model), expected, strict=True):
        assert torch.equal(copied, value)
