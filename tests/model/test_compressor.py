"""The compressor compared with a loop over documents, windows, channels and slots."""

import pytest
import torch
from torch import Tensor

from seektune.model.compressor import Compressor
from seektune.model.rope import Rope
from seektune.sequence import SequenceLayout


def entries_of(compressor: Compressor, x: Tensor, width: int, ratio: int, eps: float = 1e-6) -> Tensor:
    """Entries of one document `[T, d]` alone: softmax per channel over the slots of each window."""
    values, gates = x @ compressor.wkv.weight.T, x @ compressor.wgate.weight.T
    ape = compressor.ape
    entries = []
    for i in range(len(x) // ratio):
        slots = []
        for s in range(ratio):
            t = i * ratio + s
            if ratio == 4:
                if i > 0:  # the previous window, with the first channels
                    slots.append((gates[t - 4, :width] + ape[s, :width], values[t - 4, :width]))
                slots.append((gates[t, width:] + ape[s, width:], values[t, width:]))
            else:
                slots.append((gates[t] + ape[s], values[t]))
        pooled = []
        for channel in range(width):
            top = max(gate[channel].item() for gate, _ in slots)
            weights = [(gate[channel] - top).exp() for gate, _ in slots]
            pooled.append(
                sum(weight * value[channel] for weight, (_, value) in zip(weights, slots, strict=True)) / sum(weights)
            )
        entry = torch.stack(pooled)
        entry = compressor.norm.weight * entry / (entry.square().mean() + eps).sqrt()
        # the position of the window's first token
        entries.append(compressor.rope(torch.tensor(i * ratio))(entry))
    return torch.stack(entries)


def compressor_of(toy_model, ratio: int, width: int = 6) -> Compressor:
    compressor = toy_model(hidden_size=8, head_dim=width, index_head_dim=width, qk_rope_head_dim=4).layers[
        {4: 1, 128: 2}[ratio]
    ]
    return compressor.attn.compressor


@pytest.mark.parametrize("ratio", [4, 128])
def test_entries_and_gradients_equal_loops(toy_model, ratio):
    compressor = compressor_of(toy_model, ratio)
    rest = 3 if ratio == 4 else 70
    x = torch.randn(1, 2 * ratio + rest, 8, dtype=torch.float64, requires_grad=True)
    found = compressor(x, SequenceLayout.single(1, x.shape[1]).windows(ratio))
    expected = entries_of(compressor, x[0], 6, ratio)
    assert found.shape == (1, 2, 6)
    torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-11)
    leaves = [x, *compressor.parameters()]
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(found[0], leaves, upstream)
    for gradient, reference in zip(gradients, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-8, atol=1e-10)
    assert (gradients[0][:, 2 * ratio :] == 0).all(), "tokens after the last window are in no entry"


@pytest.mark.parametrize("ratio", [4, 128])
@torch.no_grad()
def test_windows_and_overlap_restart_at_each_document(toy_model, ratio):
    compressor = compressor_of(toy_model, ratio)
    if ratio == 4:
        documents = [1] * 9 + [2] * 3 + [3] * 4 + [0] * 2 + [4] * 13 + [5]
    else:
        documents = [1] * 130 + [2] * 127 + [0] * 3 + [3] * 300
    layout = SequenceLayout.from_documents(torch.tensor([documents]))
    x = torch.randn(1, len(documents), 8, dtype=torch.float64)
    found = compressor(x, layout.windows(ratio))[0]
    expected = []
    for number in range(1, max(documents) + 1):
        part = x[0, layout.documents[0] == number]
        if len(part) >= ratio:
            expected.append(entries_of(compressor, part, 6, ratio))
    expected = torch.cat(expected)
    torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-9, atol=1e-11)
    assert found.isfinite().all(), "slots without a window must be readable"


@torch.no_grad()
def test_overlap_uses_first_channels_of_previous_window(toy_model):
    """A token of window 0 is pooled into entry 0 with the last channels and into entry 1 with the first."""
    compressor = compressor_of(toy_model, 4)
    x = torch.randn(1, 16, 8, dtype=torch.float64)
    windows = SequenceLayout.single(1, 16).windows(4)
    before = compressor(x, windows)
    x[0, 2] += 1.0
    moved = (compressor(x, windows) - before).abs().amax(dim=-1)[0]
    assert (moved > 1e-6).tolist() == [True, True, False, False]
    compressor.wkv.weight[:6] = 0.0  # without the first channels, the previous window adds zeros
    compressor.wgate.weight[:6] = 0.0
    before = compressor(x, windows)
    x[0, 2] += 1.0
    moved = (compressor(x, windows) - before).abs().amax(dim=-1)[0]
    assert (moved > 1e-6).tolist() == [True, False, False, False]


@torch.no_grad()
def test_entries_are_rotated_by_the_layers_angles(toy_model):
    model = toy_model()
    for layer in (1, 2):
        compressor = model.layers[layer].attn.compressor
        ratio = model.config.ratio(layer)
        assert torch.equal(compressor.rope.frequencies(), Rope.of_layer(model.config, ratio).frequencies())


@torch.no_grad()
def test_products_and_softmax_are_fp32_in_a_bf16_model(toy_model):
    model = toy_model(torch.bfloat16)
    compressor = model.layers[2].attn.compressor
    assert compressor.ape.dtype == torch.float32
    x = torch.randn(1, 256, 32).bfloat16()
    windows = SequenceLayout.single(1, 256).windows(128)
    low = compressor(x, windows)
    assert low.dtype == torch.bfloat16
    values = x.double() @ compressor.wkv.weight.double().T
    gates = (x.double() @ compressor.wgate.weight.double().T).view(2, 128, 16) + compressor.ape
    exact = (gates.softmax(dim=1) * values.view(2, 128, 16)).sum(dim=1)
    exact = compressor.norm.weight * exact / (exact.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    exact = compressor.rope(torch.tensor([0, 128]))(exact)
    # three roundings to 8 bits (pooled, normalized, rotated) and none before
    assert ((low[0] - exact).abs() <= 2**-7 * exact.abs().amax(dim=-1, keepdim=True)).all()


@pytest.mark.slow
def test_gradient(toy_model):
    compressor = compressor_of(toy_model, 4, width=4)
    windows = SequenceLayout.from_documents(torch.tensor([[1] * 9 + [2] * 5])).windows(4)
    x = torch.randn(1, 14, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: compressor(x, windows)[:, :3], x)


@pytest.mark.parametrize("ratio", [4, 128])
def test_row_without_complete_window_has_no_entry_and_zero_gradients(toy_model, ratio):
    compressor = compressor_of(toy_model, ratio)
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    found = compressor(x, SequenceLayout.single(2, 3).windows(ratio))
    assert found.shape == (2, 0, 6)
    found.sum().backward()
    assert all((parameter.grad == 0).all() for parameter in compressor.parameters())


def test_pooling_is_a_weighted_mean(toy_model):
    """Equal gates pool to the mean, and one large gate to its token, before norm and rotation."""
    compressor = compressor_of(toy_model, 128)
    with torch.no_grad():
        compressor.wgate.weight.zero_()
        compressor.ape.zero_()
        compressor.norm.weight.fill_(1.0)
    x = torch.randn(1, 128, 8, dtype=torch.float64)
    windows = SequenceLayout.single(1, 128).windows(128)
    values = (x @ compressor.wkv.weight.T)[0]
    mean = values.mean(dim=0)
    torch.testing.assert_close(compressor(x, windows)[0, 0], mean / (mean.square().mean() + 1e-6).sqrt())
    with torch.no_grad():
        compressor.ape[5] = 100.0
    torch.testing.assert_close(compressor(x, windows)[0, 0], values[5] / (values[5].square().mean() + 1e-6).sqrt())
