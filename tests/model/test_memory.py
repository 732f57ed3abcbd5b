"""Attention's memory is linear in tokens: no tokens x tokens tensor is saved, or even computed."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from seektune.model.attention import Attention
from seektune.sequence import SequenceLayout
from tests.largest_tensor import LargestTensor

SHORT, LONG = 1024, 2048


def measure(attention: Attention, length: int) -> tuple[int, int, int]:
    """Elements of the largest saved tensor, of all saved storage, and of the largest tensor of any operation."""
    saved: dict[int, int] = {}
    largest_saved = 0

    def record(x: torch.Tensor) -> torch.Tensor:
        nonlocal largest_saved
        largest_saved = max(largest_saved, x.numel())
        if not isinstance(x, torch.nn.Parameter):
            storage = x.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes() // x.element_size()
        return x

    x = torch.randn(1, length, 32).requires_grad_()
    with LargestTensor() as largest:
        with saved_tensors_hooks(record, lambda x: x):
            out = attention(x, SequenceLayout.single(1, length))
        out.sum().backward()
    return largest_saved, sum(saved.values()), largest.size


@pytest.mark.slow
@pytest.mark.parametrize("layer", [0, 1, 2], ids=["window", "CSA", "HCA"])
def test_memory_is_linear_in_tokens(toy_model, layer):
    attention = toy_model(torch.float32).layers[layer].attn
    short, long = measure(attention, SHORT), measure(attention, LONG)
    assert short[0] > 0
    for before, after in zip(short, long, strict=True):
        assert after <= 2.1 * before
    assert long[0] < LONG * LONG / 4


def test_window_scores_are_not_computed_for_the_whole_row(toy_model):
    attention = toy_model(torch.float32, sliding_window=4).layers[0].attn
    _, _, largest = measure(attention, LONG)
    assert largest < LONG * 32 * 4
