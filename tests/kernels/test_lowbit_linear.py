"""Products with quantized weights equal those with the dequantized weights, values and gradients, bit for bit."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seektune.kernels import (
    dequantize,
    expert_linear,
    fp8_expert_linear,
    fp8_linear,
    gathered_linear,
    gathered_lowbit_linear,
    grouped_linear,
    lowbit_expert_linear,
    lowbit_linear,
    quantize_fp4,
    quantize_fp8,
    static_kernels,
)

KINDS = {
    "fp4": quantize_fp4,
    "fp8": quantize_fp8,
    "fp8_f32": lambda weight: quantize_fp8(weight, power_of_two=False),
}
DTYPES = [torch.bfloat16, torch.float32, torch.float64]


def with_gradient(x: Tensor, y: Tensor, seed: int = 1) -> tuple[Tensor, Tensor]:
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y.dtype)
    (grad,) = torch.autograd.grad(y, x, upstream)
    return y, grad


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_lowbit_linear_equals_linear(kind, dtype):
    weight, scale = KINDS[kind](torch.randn(200, 160))
    x = torch.randn(2, 7, 160).to(dtype).requires_grad_()
    expected = with_gradient(x, F.linear(x, dequantize(weight, scale, dtype)))
    assert_same(with_gradient(x, lowbit_linear(x, weight, scale)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_grouped_lowbit_linear_equals_grouped_linear(dtype):
    weight, scale = quantize_fp8(torch.randn(12, 160))
    x = torch.randn(2, 7, 4, 160).to(dtype).requires_grad_()
    expected = with_gradient(x, grouped_linear(x, dequantize(weight, scale, dtype), 4))
    assert_same(with_gradient(x, lowbit_linear(x, weight, scale, 4)), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("counts", [[3, 0, 5, 1], [0, 0, 9, 0], [1, 2, 3, 4]])
def test_lowbit_expert_linear_equals_expert_linear(kind, dtype, counts):
    packed = [KINDS[kind](torch.randn(48, 64)) for _ in counts]
    weights, scales = [weight for weight, _ in packed], [scale for _, scale in packed]
    x = torch.randn(sum(counts), 64).to(dtype).requires_grad_()
    dense = torch.stack([dequantize(weight, scale, dtype) for weight, scale in packed])
    expected = with_gradient(x, expert_linear(x, dense, counts))
    assert_same(with_gradient(x, lowbit_expert_linear(x, weights, scales, counts)), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gathered_products_are_those_of_sorted_pairs(kind, dtype):
    """Also with scales that the fast path for FP8 would have to look at on the host."""
    packed = [KINDS[kind](torch.randn(48, 64) * 2.0**size) for size in (0, 30, -30)]
    weight, scale = (torch.stack(each) for each in zip(*packed, strict=True))
    experts = torch.tensor([2, 0, 2, 1])
    x = torch.randn(4, 64).to(dtype)
    dense = torch.stack([dequantize(*each, dtype) for each in packed])
    expected = torch.stack([F.linear(row, dense[expert]) for row, expert in zip(x, experts, strict=True)])
    with static_kernels():
        assert torch.equal(gathered_lowbit_linear(x, experts, weight, scale), expected)
    size = expected.abs().amax(dim=1, keepdim=True)  # of a row: others are 2^30 times as large
    found = gathered_linear(x, experts, dense)
    assert float(((found - expected) / size).abs().max()) <= 64 * torch.finfo(dtype).eps


@pytest.mark.parametrize("kind", KINDS)
def test_fp8_products_are_those_of_rounded_rows(kind):
    """A row's 128 columns have a power of two for which 448 holds their largest value; gradients are not rounded."""
    packed = [KINDS[kind](torch.randn(48, 160)) for _ in range(3)]
    weights, scales = [weight for weight, _ in packed], [scale for _, scale in packed]
    x = (torch.randn(5, 160) * torch.tensor([1e-3, 1.0, 500.0, 0.0, 7.0])[:, None]).requires_grad_()
    peaks = torch.stack([x.detach()[:, :128].abs().amax(1), x.detach()[:, 128:].abs().amax(1)], dim=1).clamp(min=1e-4)
    factor = (peaks / 448).log2().ceil().exp2().repeat_interleave(128, dim=1)[:, :160]
    rounded = ((x.detach() / factor).to(torch.float8_e4m3fn).float() * factor).requires_grad_()
    experts = with_gradient(rounded, lowbit_expert_linear(rounded, weights, scales, [3, 0, 2]))
    assert_same(with_gradient(x, fp8_expert_linear(x, weights, scales, [3, 0, 2])), experts)
    plain = with_gradient(rounded, lowbit_linear(rounded, *packed[0]))
    assert_same(with_gradient(x, fp8_linear(x, *packed[0])), plain)
    assert not torch.equal(plain[0], lowbit_linear(x, *packed[0]))


def test_zero_tokens_keep_the_graph():
    weight, scale = quantize_fp4(torch.randn(48, 64))
    x = torch.zeros(0, 64, requires_grad=True)
    y = lowbit_expert_linear(x, [weight], [scale], [0])
    assert y.shape == (0, 48)
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_experts_without_tokens_are_not_read():
    """Their bytes may be anything, including NaN."""
    weight, scale = quantize_fp4(torch.randn(48, 64))
    broken = torch.full_like(scale.view(torch.uint8), 255).view(scale.dtype)
    x = torch.randn(2, 64, requires_grad=True)
    y = lowbit_expert_linear(x, [weight, weight], [broken, scale], [0, 2])
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_only_bytes_are_saved_for_backward():
    weight, scale = quantize_fp8(torch.randn(256, 256))
    saved: list[Tensor] = []

    def record(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    x = torch.randn(3, 256, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        lowbit_linear(x, weight, scale)
        lowbit_expert_linear(x, [weight], [scale], [3])
    assert {tensor.data_ptr() for tensor in saved} == {weight.data_ptr(), scale.data_ptr()}


def test_products_are_fused_with_decoding_by_shapes_and_devices_only():
    """Otherwise a resumed run could compute with another kernel, and differ in its last digits."""
    pytest.importorskip("triton")
    from seektune.kernels.triton.lowbit_grouped_mm import FUSED_ROWS, is_fused

    x = torch.zeros(1, dtype=torch.bfloat16)
    streamed = torch.zeros(1, device="meta")
    assert is_fused(3 * FUSED_ROWS, 3, x, [x, x])
    assert not is_fused(3 * FUSED_ROWS + 1, 3, x, [x, x])
    assert not is_fused(0, 0, x, [])
    assert not is_fused(3, 3, x, [x, streamed])
    assert not is_fused(3, 3, x.double(), [x, x])
