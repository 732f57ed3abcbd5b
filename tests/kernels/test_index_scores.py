"""`index_topk` compared with sorting the scores of each query."""

import pytest
import torch

from seektune.kernels import Prefix, index_topk
from seektune.kernels.eager.index_scores import BLOCK
from seektune.sequence import SequenceLayout

DOCUMENTS = torch.tensor([[1] * 90 + [2] * 3 + [0] * 6 + [3] * 61, [4] * 160])


@pytest.fixture
def inputs():
    length = DOCUMENTS.shape[1]
    q, keys = torch.randn(2, length, 6, 8).double(), torch.randn(2, length // 4, 8).double()
    return q, keys, torch.randn(2, length, 6).double()


@pytest.mark.parametrize("k", [1, 5, 40])
def test_top_k_visible_entries_are_chosen(inputs, k):
    q, keys, weights = inputs
    windows = SequenceLayout.from_documents(DOCUMENTS).windows(4)
    found = index_topk(q, keys, weights, Prefix(windows.first_BT, windows.count_BT), k).index_BTK
    assert found.shape == (*DOCUMENTS.shape, k)
    for b in range(2):
        for t in range(DOCUMENTS.shape[1]):
            first, count = windows.first_BT[b, t].item(), windows.count_BT[b, t].item()
            scores = {
                j: sum(weights[b, t, h] * max((q[b, t, h] @ keys[b, j]).item(), 0.0) for h in range(6)).item()
                for j in range(first, first + count)
            }
            best = sorted(scores, key=scores.get, reverse=True)[:k]
            picked = found[b, t].tolist()
            assert sorted(picked) == sorted(best + [-1] * (k - len(best)))


@pytest.mark.parametrize(("rows", "tokens"), [(0, 5), (2, 0)])
@pytest.mark.parametrize("run", [index_topk.eager, index_topk.reference])
def test_no_rows_or_no_tokens(run, rows, tokens):
    nothing = torch.zeros(rows, tokens, dtype=torch.long)
    q, keys, weights = torch.randn(rows, tokens, 2, 8), torch.randn(rows, 9, 8), torch.randn(rows, tokens, 2)
    assert run(q, keys, weights, Prefix(nothing, nothing), 3).index_BTK.shape == (rows, tokens, 3)


def test_entries_with_negative_scores_are_chosen():
    """Weights are signed: if every visible entry scores below zero, all visible entries are chosen, and no others."""
    q, keys = torch.ones(1, 4, 1, 2), torch.ones(1, 5, 2)
    visible = Prefix(torch.ones(1, 4, dtype=torch.long), torch.tensor([[0, 1, 2, 3]]))
    found = index_topk(q, keys, -torch.ones(1, 4, 1), visible, 3).index_BTK[0].sort(dim=-1).values
    assert found.tolist() == [[-1, -1, -1], [-1, -1, 1], [-1, 1, 2], [1, 2, 3]]


def test_ties_go_to_the_earlier_entry():
    """If no head is positive, all scores are 0; a packed document must then choose as it does alone."""
    q, keys = torch.ones(1, 1, 2, 3), -torch.ones(1, 300, 3)
    keys[0, 40] = 1.0
    for first, count in ((0, 300), (17, 200), (41, 259)):
        visible = Prefix(torch.tensor([[first]]), torch.tensor([[count]]))
        found = index_topk(q, keys, torch.ones(1, 1, 2), visible, 5).index_BTK[0, 0].tolist()
        best = [40] if first <= 40 else []
        assert sorted(found) == sorted((best + list(range(first, first + 5)))[:5])


def test_index_topk_has_no_gradient(inputs):
    q, keys, weights = (x.requires_grad_() for x in inputs)
    windows = SequenceLayout.from_documents(DOCUMENTS).windows(4)
    found = index_topk(q, keys, weights, Prefix(windows.first_BT, windows.count_BT), 3)
    assert not found.index_BTK.requires_grad
    assert found.index_BTK.dtype == torch.int64


@pytest.mark.parametrize(("heads", "k"), [(1, 3), (2, 4), (4, 60)])
def test_eager_index_topk_equals_reference_with_many_ties(heads, k):
    """With few heads of negative weight, many scores tie at 0; long rows are searched block by block."""
    documents = torch.tensor([[1] * 900 + [2] * 300 + [0] * 30 + [3] * 773, [4] * 2003])
    windows = SequenceLayout.from_documents(documents).windows(4)
    q, keys, weights = torch.randn(2, 2003, heads, 8), torch.randn(2, 500, 8), torch.randn(2, 2003, heads)
    visible = Prefix(windows.first_BT, windows.count_BT)
    found, expected = (run(q, keys, weights, visible, k).index_BTK for run in (index_topk.eager, index_topk.reference))
    assert 2 * k <= 500 // BLOCK or k == 60
    assert torch.equal(found.sort(dim=-1).values, expected.sort(dim=-1).values)
