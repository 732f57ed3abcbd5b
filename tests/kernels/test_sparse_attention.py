"""Sparse attention compared with loops over queries and heads."""

import math

import pytest
import torch
from torch import Tensor

from seektune.kernels import Chosen, Prefix, sparse_attention
from seektune.sequence import SequenceLayout


def in_plain_python(
    q: Tensor, keys: Tensor, entries: Tensor, sink: Tensor, starts: list[list[int]], window: int, seen: list
) -> Tensor:
    """`starts[b][t]` is the start of the document of token t, `seen[b][t]` the entries visible to it."""
    rows, length, heads, width = q.shape
    out = []
    for b in range(rows):
        for t in range(length):
            near = keys[b, max(starts[b][t], t - window + 1) : t + 1]
            values = torch.cat([near, entries[b][seen[b][t]]])
            for h in range(heads):
                logits = values @ q[b, t, h] / math.sqrt(width)
                top = max(logits.max().item(), sink[h].item())
                weights = (logits - top).exp()
                out.append((weights @ values) / (weights.sum() + (sink[h] - top).exp()))
    return torch.stack(out).view(rows, length, heads, width)


def starts_of(layout: SequenceLayout) -> list[list[int]]:
    index = torch.arange(layout.positions.shape[1])
    return (index - layout.positions).tolist()


def random_inputs(rows: int, length: int, entries: int, heads: int = 2, width: int = 4, dtype=torch.float64):
    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype).requires_grad_()

    return leaf(rows, length, heads, width), leaf(rows, length, width), leaf(rows, entries, width), leaf(heads)


def prefix_and_lists(layout: SequenceLayout, entries: int, ratio: int) -> tuple[Prefix, list]:
    """Windows of each document as entries: as a `Prefix`, and as a list per query."""
    windows = layout.windows(ratio)
    seen = [
        [list(range(first, first + count)) for first, count in zip(*pair, strict=True)]
        for pair in zip(windows.first_BT.tolist(), windows.count_BT.tolist(), strict=True)
    ]
    assert max(max(part, default=0) for row in seen for part in row) < entries
    return Prefix(windows.first_BT, windows.count_BT), seen


DOCUMENTS = torch.tensor([[1] * 20 + [2] * 3 + [3] * 1 + [0] * 4 + [4] * 150 + [0] * 7, [9] * 185])


def compare(arguments: tuple, options: tuple, naive: tuple) -> None:
    found = sparse_attention(*arguments, *options)
    upstream = torch.randn_like(found)
    gradients = torch.autograd.grad(found, arguments, upstream)
    expected = in_plain_python(*arguments, *naive)
    expected_gradients = torch.autograd.grad(expected, arguments, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    for gradient, by_loops, name in zip(gradients, expected_gradients, ("q", "keys", "entries", "sink"), strict=True):
        torch.testing.assert_close(gradient, by_loops, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("window", [1, 7, 150])
def test_prefix_of_entries_and_window_within_document(window):
    layout = SequenceLayout.from_documents(DOCUMENTS)
    entries = DOCUMENTS.shape[1] // 8
    visible, seen = prefix_and_lists(layout, entries, ratio=8)
    arguments = random_inputs(2, DOCUMENTS.shape[1], entries)
    compare(arguments, (layout.positions, window, visible), (starts_of(layout), window, seen))


def test_chosen_entries_with_empty_slots():
    layout = SequenceLayout.from_documents(DOCUMENTS)
    length, entries = DOCUMENTS.shape[1], 30
    chosen = torch.stack([torch.randperm(entries)[:5] for _ in range(2 * length)]).view(2, length, 5)
    chosen[torch.rand(chosen.shape) < 0.4] = -1
    chosen[:, :2] = -1
    seen = [[[j for j in picked if j >= 0] for picked in row] for row in chosen.tolist()]
    arguments = random_inputs(2, length, entries)
    compare(arguments, (layout.positions, 7, Chosen(chosen)), (starts_of(layout), 7, seen))


def test_no_entries():
    layout = SequenceLayout.single(1, 140)
    nothing = torch.zeros_like(layout.positions)
    arguments = random_inputs(1, 140, 0)
    compare(arguments, (layout.positions, 16, Prefix(nothing, nothing)), (starts_of(layout), 16, [[[]] * 140]))


@pytest.mark.parametrize("window", [1, 40, 200])
@pytest.mark.parametrize("first", [1, 27, 130, 184, 185])
def test_last_queries_with_earlier_keys_equal_the_whole(window, first):
    """A context rank or a decoder has only the last queries, and earlier keys that they see."""
    layout, entries = SequenceLayout.from_documents(DOCUMENTS), DOCUMENTS.shape[1] // 8
    visible, _ = prefix_and_lists(layout, entries, ratio=8)
    q, keys, far, sink = random_inputs(2, DOCUMENTS.shape[1], entries)
    held = max(first - window + 1, 0)  # no key before this one is seen by query `first` or a later one
    own = Prefix(visible.first_BT[:, first:], visible.count_BT[:, first:])
    whole = sparse_attention(q, keys, far, sink, layout.positions, window, visible)[:, first:]
    part = sparse_attention(q[:, first:], keys[:, held:], far, sink, layout.positions[:, first:], window, own)
    torch.testing.assert_close(part, whole, rtol=1e-9, atol=1e-11)
    upstream = torch.randn_like(whole)
    gradients = [torch.autograd.grad(out, (q, keys, far, sink), upstream) for out in (part, whole)]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_sink_is_an_unscaled_logit():
    """One key, equal to the query: weight e^(|q|^2/2) / (e^(|q|^2/2) + e^sink) for width 4."""
    q = torch.tensor([[[[1.0, 1.0, 1.0, 1.0]]]])
    nothing = torch.zeros(1, 1, dtype=torch.long)
    out = sparse_attention(q, q[:, :, 0], q[:, :0, 0], torch.tensor([3.0]), nothing, 1, Prefix(nothing, nothing))
    torch.testing.assert_close(out, q * math.exp(2) / (math.exp(2) + math.exp(3)))


def test_gradient_with_prefix_and_with_chosen_entries():
    arguments = random_inputs(1, 7, 3, width=2)
    layout = SequenceLayout.from_documents(torch.tensor([[1, 1, 1, 2, 2, 2, 2]]))
    prefix, _ = prefix_and_lists(layout, 3, ratio=2)
    chosen = Chosen(torch.tensor([[[-1, -1], [0, -1], [0, 2], [-1, -1], [1, -1], [1, 0], [2, -1]]]))
    for visible in (prefix, chosen):
        call = (layout.positions, 2, visible)
        assert torch.autograd.gradcheck(lambda *x, call=call: sparse_attention(*x, *call), arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_queries_without_entries_have_finite_gradients_in_low_precision(dtype, size):
    arguments = [(x.detach() * size).to(dtype).requires_grad_() for x in random_inputs(2, 6, 4)[:3]]
    sink = torch.tensor([-1e4, 1e4]).requires_grad_()
    layout = SequenceLayout.from_documents(torch.tensor([[1, 2, 3, 3, 0, 0], [0, 0, 0, 0, 0, 0]]))
    nothing = torch.full((2, 6, 4), -1)
    empty = torch.zeros_like(layout.positions)
    for visible in (Chosen(nothing), Prefix(empty, empty)):
        out = sparse_attention(*arguments, sink, layout.positions, 3, visible)
        assert out.dtype == dtype
        gradients = torch.autograd.grad(out.float().square().sum(), [*arguments, sink])
        assert out.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert (gradients[2] == 0).all(), "entries that no query sees"


def test_bf16_rounds_only_probabilities_and_result():
    q, keys, entries = (x.detach().to(torch.bfloat16) for x in random_inputs(1, 200, 6, width=64)[:3])
    sink = torch.zeros(2)
    layout = SequenceLayout.single(1, 200)
    prefix, seen = prefix_and_lists(layout, 6, ratio=33)
    low = sparse_attention(q, keys, entries, sink, layout.positions, 64, prefix)
    assert low.dtype == torch.bfloat16
    rounded, exact = [], []
    for t in range(200):
        values = torch.cat([keys[0, max(0, t - 63) : t + 1], entries[0][seen[0][t]]]).float()
        weights = torch.cat([q[0, t].float() @ values.T / 8, sink[:, None]], dim=1).softmax(dim=1)[:, :-1]
        rounded.append((weights.bfloat16().float() @ values).bfloat16())
        exact.append((weights @ values).bfloat16())
    assert (low[0] == torch.stack(rounded)).double().mean() > 0.995
    assert (low[0] == torch.stack(exact)).double().mean() < 0.98


@pytest.mark.parametrize("length", [256, 1024])
def test_scores_are_not_saved_for_backward(length):
    """Saved tensors have the size of inputs and outputs, not of queries times keys."""
    q, keys, entries, sink = random_inputs(1, length, length // 8, width=8, dtype=torch.float32)
    layout = SequenceLayout.single(1, length)
    visible, _ = prefix_and_lists(layout, length // 8, ratio=8)
    saved: dict[int, int] = {}

    def record(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(record, lambda x: x):
        out = sparse_attention(q, keys, entries, sink, layout.positions, 64, visible)
    out.sum().backward()
    assert saved
    assert sum(saved.values()) <= 2 * sum(x.untyped_storage().nbytes() for x in (q, keys, entries, out))
