"""A streamed model equals the quantized model in memory, and its pages are prefetched and released."""

import mmap
from pathlib import Path

import pytest
import torch

from seektune.checkpoint import mmap as mmap_folder
from seektune.checkpoint.mmap import MmapFolder
from seektune.checkpoint.source import FolderSource
from seektune.lora.files import load_adapter, save_adapter
from seektune.lora.frozen_digest import frozen_digest
from seektune.lora.initialize import init_adapters
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.state import base_state
from seektune.lora.targets import matching
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from tests.lora.test_inject import fill, outputs

TARGETS = ("attn", "ffn.experts", "ffn.shared_experts", "embed", "head")


def adapted(folder: Path, dtype: torch.dtype, **shape) -> DeepseekV4ForCausalLM:
    streamed = shape.pop("streamed")
    model = DeepseekV4ForCausalLM.from_pretrained(folder, dtype, quantized=True, streamed=streamed)
    targets = TARGETS if "merge_into" not in shape else TARGETS[:3]
    adapt(model, matching(model, targets), AdapterShape(rank=2, alpha=4.0, **shape))
    init_adapters(model, 0)
    fill(model)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [{}, {"merge_into": "released"}])
@pytest.mark.slow
def test_streamed_values_and_gradients_equal_the_in_memory_model(parity_folder, dtype, shape):
    found = []
    for streamed in (False, True):
        model = adapted(parity_folder, dtype, streamed=streamed, **shape)
        *values, loss = outputs(model)
        loss.backward()
        found.append([*values, *(p.grad for p in model.parameters() if p.requires_grad)])
    for memory, file in zip(*found, strict=True):
        assert torch.equal(memory, file)


@pytest.mark.slow
def test_blocks_are_prefetched_and_released(parity_folder, monkeypatch):
    advised = []

    def advise(regions, advice):
        advised.append((advice, sum(size for _, _, size in regions)))

    monkeypatch.setattr(mmap_folder, "_advise", advise)
    model = DeepseekV4ForCausalLM.from_pretrained(parity_folder, torch.bfloat16, quantized=True, streamed=True)
    adapt(model, matching(model, ["attn"]), AdapterShape(rank=2, alpha=4.0))
    init_adapters(model, 0)
    loss = outputs(model)[2]
    blocks = model.config.num_hidden_layers + 1
    fetched = [size for advice, size in advised if advice == mmap.MADV_WILLNEED]
    released = [size for advice, size in advised if advice == mmap.MADV_DONTNEED]
    assert len(fetched) == len(released) == blocks - 1
    assert all(size > 0 for size in fetched + released)
    advised.clear()
    loss.backward()
    assert len([advice for advice, _ in advised if advice == mmap.MADV_WILLNEED]) == blocks - 1
    assert len([advice for advice, _ in advised if advice == mmap.MADV_DONTNEED]) == blocks - 1


def test_streamed_weights_are_views_of_the_file(parity_folder):
    model = DeepseekV4ForCausalLM.from_pretrained(parity_folder, torch.bfloat16, quantized=True, streamed=True)
    assert all(p.is_meta for p in model.parameters() if p.dtype in (torch.int8, torch.uint8))
    assert not any(p.is_meta for p in model.parameters() if p.is_floating_point())
    files, source = MmapFolder(parity_folder), FolderSource(parity_folder)
    for name, _ in source.shapes():
        view, read = files.stored(name), source.stored(name)
        assert torch.equal(view.weight.view(-1).view(torch.uint8), read.weight.view(-1).view(torch.uint8)), name
        assert (view.scale is None) == (read.scale is None)
        if view.scale is not None and read.scale is not None:
            assert torch.equal(view.scale.view(torch.uint8), read.scale.view(torch.uint8))
    assert frozen_digest(base_state(model)) == frozen_digest(base_state(model))


def test_regions_cover_their_tensors_in_whole_pages(parity_folder):
    files = MmapFolder(parity_folder)
    names = [name for name, _ in files.source.shapes()]
    whole = sum(size for _, _, size in files.regions(names))
    assert whole >= sum(files.source.size(name) for name in names)
    for _, start_at, size in files.regions(names[3:9]):
        assert start_at % mmap.PAGESIZE == 0
        assert size > 0


@pytest.mark.slow
def test_streamed_model_loads_the_same_adapter(parity_folder, tmp_path):
    save_adapter(adapted(parity_folder, torch.float32, streamed=True), tmp_path / "adapter")
    found = []
    for streamed in (False, True):
        model = DeepseekV4ForCausalLM.from_pretrained(parity_folder, quantized=True, streamed=streamed)
        load_adapter(model, tmp_path / "adapter")
        with torch.no_grad():
            found.append(outputs(model)[0])
    assert torch.equal(*found)
