"""The MoE layer compared with one token and one expert at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seektune.model.moe import MoE
from seektune.sequence import SequenceLayout

LIMIT = 1.5


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate.clamp(max=LIMIT)) * up.clamp(-LIMIT, LIMIT)


def per_token_reference(moe: MoE, x: Tensor, ids: Tensor) -> Tensor:
    experts, shared = moe.experts, moe.shared_experts
    routing = moe.gate(x, ids)
    out = []
    for n, token in enumerate(x):
        y = shared.w2.weight @ swiglu(shared.w1.weight @ token, shared.w3.weight @ token)
        for expert in dict.fromkeys(routing.experts_NK[n].tolist()):
            weight = routing.weights_NK[n][routing.experts_NK[n] == expert].max()
            y = y + weight * (experts.w2[expert] @ swiglu(experts.w1[expert] @ token, experts.w3[expert] @ token))
        out.append(y)
    return torch.stack(out)


@pytest.mark.parametrize("layer", [0, 2])
def test_outputs_and_gradients_equal_single_experts(toy_model, layer):
    model = toy_model()
    moe = model.layers[layer].ffn
    if layer == 0:
        moe.gate.tid2eid[3] = torch.tensor([1, 1, 6])
    x = (torch.randn(2, 9, 32, dtype=torch.float64) * 2).requires_grad_()
    ids = torch.randint(64, (2, 9))
    ids[0, 0] = 3
    found = moe(x, ids, SequenceLayout.single(2, 9), None)
    expected = per_token_reference(moe, x.flatten(0, 1), ids.flatten()).view(2, 9, 32)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    leaves = [x, *moe.parameters()]
    upstream = torch.randn_like(found)
    gradients = torch.autograd.grad(found, leaves, upstream)
    for gradient, reference in zip(gradients, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-8, atol=1e-10)


def test_shared_expert_has_the_same_clamp(toy_model):
    shared = toy_model().layers[1].ffn.shared_experts
    x = torch.randn(40, 32, dtype=torch.float64) * 3
    gate, up = x @ shared.w1.weight.T, x @ shared.w3.weight.T
    assert (gate > LIMIT).any()
    assert (up.abs() > LIMIT).any()
    torch.testing.assert_close(shared(x), swiglu(gate, up) @ shared.w2.weight.T)
    free = (F.silu(gate) * up) @ shared.w2.weight.T
    assert (shared(x) - free).abs().max() > 0.1


def test_unchosen_experts_get_zero_gradients(toy_model):
    moe = toy_model().layers[2].ffn
    moe.gate.bias[:] = torch.tensor([0.0, 0, 0, 50, 50, 50, 0, 0])
    x = torch.randn(1, 6, 32, dtype=torch.float64)
    moe(x, None, SequenceLayout.single(1, 6), None).square().sum().backward()
    for weight in (moe.experts.w1, moe.experts.w2, moe.experts.w3):
        used = (weight.grad != 0).flatten(1).any(dim=1).tolist()
        assert used == [False, False, False, True, True, True, False, False]


@torch.no_grad()
def test_sum_of_experts_is_rounded_once_in_bf16(toy_model):
    moe = toy_model(torch.bfloat16).layers[2].ffn
    x = torch.randn(1, 30, 32).bfloat16()
    found = moe(x, None, SequenceLayout.single(1, 30), None)
    assert found.dtype == torch.bfloat16
    routing = moe.gate(x[0], None)
    total = moe.shared_experts(x[0]).float()
    for n, token in enumerate(x[0]):
        for expert, weight in zip(routing.experts_NK[n].tolist(), routing.weights_NK[n], strict=True):
            gate, up = (moe.experts.w1[expert] @ token).float(), (moe.experts.w3[expert] @ token).float()
            inner = (weight * swiglu(gate, up)).bfloat16()
            total[n] += (moe.experts.w2[expert] @ inner).float()
    # sums inside products may be rounded differently, but the sum over experts is rounded once
    assert (found[0].float() - total).abs().max() <= 2**-7 * total.abs().max()
    exact = (found[0].float() - total).abs() <= 2**-8 * total.abs()
    assert exact.double().mean() > 0.9
