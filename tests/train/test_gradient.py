import math

import pytest
import torch
from torch import nn

from seektune.parallel.mesh import Mesh
from seektune.train.gradient import NotFiniteError, accumulate_in_fp32, clip, gradient_norm


def model_with(*gradients: list[float], dtype: torch.dtype = torch.float32) -> nn.ParameterList:
    model = nn.ParameterList(nn.Parameter(torch.zeros(len(g), dtype=dtype)) for g in gradients)
    for parameter, gradient in zip(model, gradients, strict=True):
        parameter.grad = torch.tensor(gradient, dtype=dtype)
    return model


def norm_of(model: nn.Module) -> float:
    return gradient_norm(model.named_parameters(), Mesh.alone())


def test_norm_is_over_all_parameters():
    assert norm_of(model_with([3.0], [4.0, 12.0])) == pytest.approx(13.0)


def test_norm_of_bf16_gradients_is_summed_in_fp32():
    assert norm_of(model_with([0.1] * 10_000, dtype=torch.bfloat16)) == pytest.approx(10.0, rel=1e-2)


def test_clip_scales_everything_alike_and_only_when_too_long():
    model = model_with([3.0], [4.0])
    clip(model.parameters(), 5.0, 1.0)
    assert [parameter.grad.item() for parameter in model] == pytest.approx([0.6, 0.8])
    for limit in (10.0, None):
        model = model_with([3.0], [4.0])
        clip(model.parameters(), 5.0, limit)
        assert [parameter.grad.item() for parameter in model] == [3.0, 4.0]


def test_a_faulty_gradient_is_named():
    with pytest.raises(NotFiniteError, match=r"not finite in 1, 2$"):
        norm_of(model_with([3.0], [math.nan], [math.inf]))
    with pytest.raises(NotFiniteError, match=r"in 0, 1, 2, 3, 4 and 3 more"):
        norm_of(model_with(*[[math.nan]] * 8))


def test_large_finite_gradients_have_a_finite_norm():
    assert norm_of(model_with([1e19], [1e19])) == pytest.approx(math.sqrt(2) * 1e19)


def test_bf16_gradients_of_many_micro_batches_add_up_in_fp32():
    parameter = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    model = nn.ParameterList([parameter])
    accumulate_in_fp32(model.parameters())
    for _ in range(1000):
        parameter.sum().backward()
    assert parameter.grad.dtype == torch.float32
    assert parameter.grad.item() == 1000.0
