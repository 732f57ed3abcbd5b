"""Hyper-connections compared with loops in plain Python."""

import math

import pytest
import torch
from torch import Tensor

from seektune.model.hyper import HyperConnection, HyperHead


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def router(x: list[float], fn: list[list[float]], eps: float) -> list[float]:
    """fn times x, divided by the RMS of x."""
    scale = 1 / math.sqrt(sum(value * value for value in x) / len(x) + eps)
    return [sum(weight * value for weight, value in zip(row, x, strict=True)) * scale for row in fn]


def reference_connection(
    module: HyperConnection, streams: Tensor, branch, n: int, iterations: int, eps: float
) -> Tensor:
    """One token `[n, d]`: read, run the branch, mix and write."""
    fn, base, scale = module.fn.tolist(), module.base.tolist(), module.scale.tolist()
    u = router(streams.flatten().tolist(), fn, module.norm_eps)
    a = [sigmoid(scale[0] * u[j] + base[j]) + eps for j in range(n)]
    p = [2 * sigmoid(scale[1] * u[n + k] + base[n + k]) for k in range(n)]
    c = []
    for j in range(n):
        row = [scale[2] * u[2 * n + n * j + k] + base[2 * n + n * j + k] for k in range(n)]
        total = sum(math.exp(value) for value in row)
        c.append([math.exp(value) / total + eps for value in row])
    for step in range(iterations):
        if step:
            c = [[value / (sum(row) + eps) for value in row] for row in c]
        sums = [sum(c[j][k] for j in range(n)) + eps for k in range(n)]
        c = [[c[j][k] / sums[k] for k in range(n)] for j in range(n)]
    y = branch(sum(a[j] * streams[j] for j in range(n)))
    return torch.stack([p[k] * y + sum(c[j][k] * streams[j] for j in range(n)) for k in range(n)])


@pytest.fixture
def connection(toy_model) -> HyperConnection:
    return toy_model().layers[0].hc_attn


def test_connection_equals_reference(toy_model, connection):
    weight = torch.randn(32, 32, dtype=torch.float64) / 6
    streams = torch.randn(2, 3, 4, 32, dtype=torch.float64)
    found = connection(streams, lambda x: torch.tanh(x @ weight))
    for b in range(2):
        for t in range(3):
            expected = reference_connection(connection, streams[b, t], lambda x: torch.tanh(x @ weight), 4, 20, 1e-6)
            torch.testing.assert_close(found[b, t], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("streams", "iterations", "eps"), [(2, 3, 1e-2), (1, 20, 1e-6), (3, 1, 1e-1)])
def test_other_numbers_of_streams_iterations_and_eps(toy_model, streams, iterations, eps):
    model = toy_model(hc_mult=streams, hc_sinkhorn_iters=iterations, hc_eps=eps, rms_norm_eps=0.3)
    connection = model.layers[1].hc_ffn
    x = torch.randn(1, 1, streams, 32, dtype=torch.float64)
    expected = reference_connection(connection, x[0, 0], torch.sin, streams, iterations, eps)
    torch.testing.assert_close(connection(x, torch.sin)[0, 0], expected, rtol=1e-9, atol=1e-11)


def fix_mixing(connection: HyperConnection, mix: Tensor) -> None:
    """Set constant mixing logits that do not depend on the streams."""
    with torch.no_grad():
        connection.scale.zero_()
        connection.base.zero_()
        connection.base[8:] = mix.flatten()


def test_streams_flow_from_source_j_to_target_k(connection):
    """A cyclic permutation as mixing logits: stream j flows to j + 1; transposed, it would flow to j - 1."""
    fix_mixing(connection, 30 * torch.eye(4, dtype=torch.float64).roll(1, dims=1))
    streams = torch.arange(4, dtype=torch.float64)[None, None, :, None].expand(1, 1, 4, 32)
    out = connection(streams, torch.zeros_like)
    torch.testing.assert_close(out[0, 0, :, 0], torch.tensor([3.0, 0.0, 1.0, 2.0]).double(), atol=1e-4, rtol=0)


def test_mixing_weights_start_from_a_softmax_over_targets(connection):
    """A row of large equal logits mixes evenly; with a sigmoid it would outweigh the other rows."""
    logits = torch.zeros(4, 4, dtype=torch.float64)
    logits[0] = 9.0
    fix_mixing(connection, logits)
    streams = torch.randn(1, 1, 4, 32, dtype=torch.float64)
    out = connection(streams, torch.zeros_like)
    torch.testing.assert_close(out, streams.mean(dim=2, keepdim=True).expand_as(out), rtol=0, atol=1e-4)


def test_write_weights_are_twice_a_sigmoid(connection):
    fix_mixing(connection, torch.zeros(4, 4))
    with torch.no_grad():
        connection.base[4:8] = torch.tensor([0.0, 30.0, -30.0, 1.0])
    out = connection(torch.zeros(1, 1, 4, 32, dtype=torch.float64), torch.ones_like)
    expected = torch.tensor([1.0, 2.0, 0.0, 2 * sigmoid(1.0)], dtype=torch.float64)
    torch.testing.assert_close(out[0, 0, :, 0], expected)


def test_read_weights_are_a_sigmoid(connection):
    fix_mixing(connection, torch.zeros(4, 4))
    with torch.no_grad():
        connection.base[:4] = torch.tensor([30.0, -30.0, 0.0, -30.0])
    seen = []
    streams = torch.randn(1, 1, 4, 32, dtype=torch.float64)
    connection(streams, lambda x: seen.append(x) or x)
    torch.testing.assert_close(seen[0][0, 0], streams[0, 0, 0] + 0.5 * streams[0, 0, 2], rtol=0, atol=1e-4)


def test_head_reads_the_streams(toy_model):
    head = toy_model().hc_head
    assert isinstance(head, HyperHead)
    streams = torch.randn(1, 2, 4, 32, dtype=torch.float64)
    found = head(streams)
    for t in range(2):
        u = router(streams[0, t].flatten().tolist(), head.fn.tolist(), 1e-6)
        weights = [sigmoid(head.scale.item() * u[j] + head.base[j].item()) + 1e-6 for j in range(4)]
        torch.testing.assert_close(found[0, t], sum(weights[j] * streams[0, t, j] for j in range(4)))


def test_gradients(toy_model):
    model = toy_model(hidden_size=3, hc_mult=2)
    connection, head = model.layers[0].hc_attn, model.hc_head
    names, values = zip(*connection.named_parameters(), strict=True)
    x = torch.randn(1, 1, 2, 3, dtype=torch.float64, requires_grad=True)

    def call(streams: Tensor, *parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(connection, state, (streams, torch.sin))

    assert torch.autograd.gradcheck(call, (x, *values))
    assert torch.autograd.gradcheck(head, x)


def test_streams_are_mixed_in_fp32_and_rounded_once_in_a_bf16_model(toy_model):
    connection = toy_model(torch.bfloat16).layers[0].hc_attn
    assert {parameter.dtype for parameter in connection.parameters()} == {torch.float32}
    streams = torch.randn(2, 5, 4, 32).bfloat16()
    low = connection(streams, torch.zeros_like)
    full = connection(streams.float(), torch.zeros_like)
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, full.bfloat16())
