"""`linear_cross_entropy` compared with torch's cross-entropy; it needs less memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from seektune.kernels import linear_cross_entropy
from seektune.kernels.reference import linear_cross_entropy as reference
from tests.largest_tensor import LargestTensor


@pytest.mark.parametrize("tokens", [1, 1024, 1025, 2500])
def test_equals_sum_of_cross_entropies(tokens):
    hidden = torch.randn(tokens, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (tokens,))
    found = linear_cross_entropy(hidden, weight, targets)
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(found, (hidden, weight))
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, (hidden, weight)), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)


def test_zero_tokens_have_zero_loss_and_gradients():
    hidden, weight = torch.randn(0, 6, requires_grad=True), torch.randn(11, 6, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, torch.zeros(0, dtype=torch.long))
    assert loss.item() == 0.0
    loss.backward()
    assert (weight.grad == 0).all()
    assert hidden.grad.shape == (0, 6)


def test_bf16_is_summed_in_fp32():
    hidden, weight = torch.randn(3000, 8).bfloat16(), torch.randn(20, 8).bfloat16()
    targets = torch.randint(20, (3000,))
    loss = linear_cross_entropy(hidden, weight, targets)
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(hidden.double() @ weight.double().T, targets, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_grad_computes_only_logits(mode):
    hidden, weight = torch.randn(50, 8), torch.randn(30, 8, requires_grad=True)
    with mode(), FlopCounterMode(display=False) as counter:
        linear_cross_entropy(hidden, weight, torch.randint(30, (50,)))
    assert counter.get_total_flops() == 2 * 50 * 8 * 30


@pytest.mark.parametrize("divisor", [2999, 777.7])
def test_mean_in_bf16_scales_gradients_exactly(divisor):
    """1 / divisor is not a bf16 number; rounding it would scale all gradients by the same error."""
    inputs = (torch.randn(300, 32).bfloat16(), torch.randn(50, 32).bfloat16())
    targets, gradients = torch.randint(50, (300,)), []
    for dtype in (torch.bfloat16, torch.float64):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        gradients.append(torch.autograd.grad(linear_cross_entropy(*leaves, targets) / divisor, leaves))
    for found, expected in zip(*gradients, strict=True):
        along = (found.double() * expected).sum() / expected.square().sum()
        assert along.item() == pytest.approx(1.0, abs=4e-4)


def test_full_logits_are_never_materialized():
    hidden, weight = torch.randn(5000, 4, requires_grad=True), torch.randn(300, 4, requires_grad=True)
    with LargestTensor() as largest:
        linear_cross_entropy(hidden, weight, torch.randint(300, (5000,))).backward()
    assert 0 < largest.size <= 1024 * 300 < 5000 * 300


@pytest.mark.slow
def test_bf16_head_is_never_cast_as_a_whole():
    """Loss and gradients equal the reference's."""
    hidden, weight = torch.randn(1100, 6).bfloat16().requires_grad_(), torch.randn(8300, 6).bfloat16()
    targets = torch.randint(8300, (1100,))
    with Fp32Casts() as casts:
        loss = linear_cross_entropy(hidden, weight, targets)
        loss.backward()
    assert {8192 * 6, 108 * 6} <= casts.sizes
    assert weight.numel() not in casts.sizes
    twin = hidden.detach().requires_grad_()
    expected = reference(twin, weight, targets)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(hidden.grad, twin.grad, rtol=1e-2, atol=1e-4)
    weight.requires_grad_()
    losses = (each(hidden, weight, targets) for each in (linear_cross_entropy, reference))
    found, wanted = (torch.autograd.grad(each, weight)[0] for each in losses)
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-4)


class Fp32Casts(TorchDispatchMode):
    """Records the sizes of all fp32 tensors that casts return."""

    def __init__(self):
        super().__init__()
        self.sizes: set[int] = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if function is torch.ops.aten._to_copy.default and result.dtype == torch.float32:
            self.sizes.add(result.numel())
        return result
