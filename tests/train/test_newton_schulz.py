"""The batched iteration equals its definition, and torch's where both have the same coefficients."""

import pytest
import torch

from seektune.train.optim.newton_schulz import HYBRID, iteration_flops, orthogonalize, orthogonalize_reference

SHAPES = [(3, 20, 50), (2, 50, 20), (4, 16, 16), (1, 1, 9), (2, 24, 512)]


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_each_matrix_of_a_batch_is_what_the_definition_makes_of_it(shape, dtype, bound):
    x_NRC = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = orthogonalize(x_NRC)
    assert found.dtype == dtype
    for x_RC, one in zip(x_NRC, found, strict=True):
        assert relative(one, orthogonalize_reference(x_RC)) < bound


def test_singular_values_from_1_to_a_thousandth_become_1():
    dice = torch.Generator().manual_seed(2)
    left, right = (torch.linalg.qr(torch.randn(n, 30, generator=dice).double())[0] for n in (40, 60))
    x_RC = left @ torch.diag(torch.logspace(0, -3, 30).double()) @ right.T
    values = torch.linalg.svdvals(orthogonalize(x_RC[None])[0])[:30]
    # 1 is a fixed point to which the last two iterations converge quadratically
    assert (values - 1).abs().max() < 1e-3
    assert relative(orthogonalize(x_RC[None])[0], left @ right.T) < 1e-3


def test_the_scale_of_a_matrix_does_not_matter_and_zeros_stay():
    x_NRC = torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(orthogonalize(1e-4 * x_NRC), orthogonalize(x_NRC), rtol=0, atol=1e-5)
    assert torch.equal(orthogonalize(torch.zeros(2, 8, 12)), torch.zeros(2, 8, 12))


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_torch_makes_the_same_of_it_with_one_set_of_coefficients(shape):
    x_RC = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = x_RC
    numbers = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    torch.optim.Muon([weight], lr=1.0, ns_coefficients=HYBRID[0], ns_steps=8, **numbers).step()
    ours = orthogonalize(x_RC.bfloat16()[None], HYBRID[:8])[0] * 0.2 * max(shape) ** 0.5
    # both compute in bf16
    assert relative(-ours, weight.detach().double()) < 2e-2


def test_operations_are_those_of_the_products():
    assert iteration_flops(2, 5) == iteration_flops(5, 2) == 10 * (2 * 4 * 5 + 2 * 8 + 2 * 4 * 5)
