"""Sinkhorn compared with loops in plain Python."""

import math

import pytest
import torch

from seektune.kernels import sinkhorn


def in_plain_python(logits: list[list[float]], iterations: int, eps: float) -> list[list[float]]:
    """Softmax over targets plus eps; columns; then `iterations - 1` times rows and columns."""
    n = len(logits)
    c = []
    for row in logits:
        top = max(row)
        total = sum(math.exp(value - top) for value in row)
        c.append([math.exp(value - top) / total + eps for value in row])

    def columns() -> None:
        for k in range(n):
            total = sum(c[j][k] for j in range(n)) + eps
            for j in range(n):
                c[j][k] /= total

    def rows() -> None:
        for j in range(n):
            total = sum(c[j]) + eps
            c[j] = [value / total for value in c[j]]

    columns()
    for _ in range(iterations - 1):
        rows()
        columns()
    return c


@pytest.mark.parametrize(("iterations", "eps"), [(20, 1e-6), (1, 1e-6), (2, 1e-2), (5, 1e-1)])
@pytest.mark.parametrize("streams", [1, 2, 4])
def test_sinkhorn_equals_alternating_passes(iterations, eps, streams):
    logits = torch.randn(3, 2, streams, streams, dtype=torch.float64) * 3
    found = sinkhorn(logits, iterations, eps)
    expected = [[in_plain_python(matrix, iterations, eps) for matrix in row] for row in logits.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


def test_last_pass_is_over_columns():
    """After few passes, columns are normalized and rows are not yet."""
    mix = sinkhorn(torch.randn(4, 4, dtype=torch.float64) * 3, 2, 1e-6)
    assert (mix.sum(dim=0) - 1).abs().max() < 1e-5 < (mix.sum(dim=1) - 1).abs().max()


def test_adding_a_constant_to_a_row_changes_nothing():
    """True for a softmax over targets, but not for a sigmoid."""
    logits = torch.randn(4, 4, dtype=torch.float64)
    shifted = logits + torch.tensor([[5.0], [-3.0], [0.0], [1.0]], dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(shifted, 20, 1e-6), sinkhorn(logits, 20, 1e-6))


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_logits_give_finite_weights_and_gradients(size):
    logits = (torch.randn(5, 4, 4) * size).requires_grad_()
    mix = sinkhorn(logits, 20, 1e-6)
    mix.square().sum().backward()
    assert mix.isfinite().all()
    assert logits.grad.isfinite().all()


def test_gradient():
    logits = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sinkhorn(x, 20, 1e-6), logits)
