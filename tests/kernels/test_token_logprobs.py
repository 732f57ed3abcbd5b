"""`token_logprobs` compared with autograd of its plain definition, with the fused cross-entropy, and its memory."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from seektune.kernels import linear_cross_entropy, token_logprobs
from tests.largest_tensor import LargestTensor

from .inputs import leaf, wide

SHAPES = {"one": (1, 6, 11), "chunk": (1024, 5, 9), "chunks": (2051, 7, 13), "blocks": (19, 3, 8209)}


def inputs(dtype: torch.dtype, tokens: int, width: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    return leaf(dtype, tokens, width), leaf(dtype, vocabulary, width), torch.randint(vocabulary, (tokens,))


def plain(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    high = wide(hidden_ND.dtype)
    return (hidden_ND.to(high) @ weight_VD.to(high).T).log_softmax(1)[torch.arange(len(targets_N)), targets_N]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_are_those_of_autograd(shape, dtype, bound):
    hidden, weight, targets = inputs(dtype, *shape)
    found, expected = token_logprobs(hidden, weight, targets), plain(hidden, weight, targets)
    assert found.dtype == wide(dtype)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(expected)
    gradients = (torch.autograd.grad(x, (hidden, weight), upstream) for x in (found, expected))
    for gradient, wanted in zip(*gradients, strict=True):
        scale = wanted.abs().max()
        torch.testing.assert_close(gradient / scale, wanted / scale, rtol=0, atol=bound)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_fused_cross_entropy_is_their_negative_sum(weighted):
    hidden, weight, targets = inputs(torch.float64, 1500, 6, 40)
    weights = torch.rand(1500, dtype=torch.float64) if weighted else None
    fused = linear_cross_entropy(hidden, weight, targets, weights)
    logprobs = token_logprobs(hidden, weight, targets)
    summed = -(logprobs if weights is None else logprobs * weights).sum()
    torch.testing.assert_close(fused, summed, rtol=1e-12, atol=0)
    for found, expected in zip(*(torch.autograd.grad(x / 7, (hidden, weight)) for x in (fused, summed)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_frozen_head_costs_no_product_for_its_gradient():
    hidden, weight, targets = inputs(torch.float32, 50, 8, 30)
    product = 2 * 50 * 8 * 30
    for frozen, products in ((False, 4), (True, 3)):
        with FlopCounterMode(display=False) as counter:
            token_logprobs(hidden, weight.detach() if frozen else weight, targets).sum().backward()
        assert counter.get_total_flops() == products * product


def test_full_logits_are_never_materialized():
    hidden, weight, targets = inputs(torch.float32, 5000, 4, 300)
    with LargestTensor() as largest:
        token_logprobs(hidden, weight, targets).sum().backward()
    assert 0 < largest.size <= 1024 * 300 < 5000 * 300
