"""The clamped activation of the experts."""

import math

import pytest
import torch

from seektune.kernels import clamped_swiglu


@pytest.mark.parametrize("gate", [-20.0, -3.0, 0.5, 9.9, 10.1, 50.0])
@pytest.mark.parametrize("up", [-50.0, -10.1, -9.9, 0.3, 9.9, 10.1])
def test_gate_is_clamped_above_and_up_on_both_sides(gate, up):
    g, u = (
        torch.tensor(gate, dtype=torch.float64).requires_grad_(),
        torch.tensor(up, dtype=torch.float64).requires_grad_(),
    )
    found = clamped_swiglu(g, u, 10.0)
    clamped = min(gate, 10.0)
    silu = clamped / (1 + math.exp(-clamped))
    assert found.item() == pytest.approx(silu * max(-10.0, min(up, 10.0)), rel=1e-12)
    found.backward()
    assert (g.grad == 0) == (gate > 10)
    assert (u.grad == 0) == (abs(up) > 10)


def test_bf16_is_computed_in_fp32():
    gate, up = torch.randn(2, 50).bfloat16()
    found = clamped_swiglu(gate, up, 10.0)
    assert found.dtype == torch.float32
    assert torch.equal(found, clamped_swiglu(gate.float(), up.float(), 10.0))


def test_gradient():
    gate, up = (torch.randn(2, 30, dtype=torch.float64) * 2).unbind()
    assert torch.autograd.gradcheck(
        lambda gate, up: clamped_swiglu(gate, up, 1.0), (gate.requires_grad_(), up.requires_grad_())
    )
