"""`expert_linear` compared with one product per token."""

import pytest
import torch

from seektune.kernels import expert_linear, sort_by_expert

COUNTS = [[2, 0, 3, 1], [0, 0, 6, 0], [0, 3, 3, 0], [0, 0, 0, 0], [6, 0, 0, 0]]


@pytest.mark.parametrize("counts", COUNTS)
def test_each_row_uses_its_experts_matrix(counts):
    x = torch.randn(sum(counts), 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, 3, dtype=torch.float64, requires_grad=True)
    experts = [expert for expert, count in enumerate(counts) for _ in range(count)]
    found = expert_linear(x, weight, counts)
    assert found.shape == (sum(counts), 5)
    upstream = torch.randn_like(found)
    dx, dweight = torch.autograd.grad(found, (x, weight), upstream)
    expected_dweight = torch.zeros_like(weight)
    for row, expert in enumerate(experts):
        torch.testing.assert_close(found[row], weight[expert] @ x[row])
        torch.testing.assert_close(dx[row], upstream[row] @ weight[expert])
        expected_dweight[expert] += upstream[row].outer(x[row]).detach()
    torch.testing.assert_close(dweight, expected_dweight)
    for expert, count in enumerate(counts):
        assert count or (dweight[expert] == 0).all(), "an expert without tokens"


def test_gradient():
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: expert_linear(x, weight, [2, 0, 3]), (x, weight))


def test_sort_by_expert_is_stable():
    experts = torch.tensor([[3, 1], [1, 0], [3, 1], [5, 3]])
    order, counts = sort_by_expert(experts, 6)
    assert counts.tolist() == [1, 3, 0, 3, 0, 1]
    assert order.tolist() == [3, 1, 2, 5, 0, 4, 7, 6]
