"""Every eager implementation equals its reference twin, values and gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seektune import kernels
from seektune.kernels import Kernel

from .inputs import CASES, Case
from .twins import kernel, run

PAIRS = [
    pytest.param(name, case, id=f"{name}-{label}") for name, cases in CASES.items() for label, case in cases.items()
]

# a hand-written backward rounds to bf16 at other points
BOUNDS = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_eager_equals_reference(name: str, case: Case, dtype: torch.dtype):
    arguments = case(dtype)
    eager, reference = run(kernel(name).eager, arguments), run(kernel(name).reference, arguments)
    for found, expected in zip(eager, reference, strict=True):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        scale = max(float(expected.detach().abs().max()), 1e-3) if expected.numel() else 1.0
        torch.testing.assert_close(found.double() / scale, expected.double() / scale, rtol=0, atol=BOUNDS[dtype])


@pytest.mark.parametrize("name", [name for name in CASES if kernel(name).invariant is not None])
def test_invariant_equals_reference(name: str):
    for case in CASES[name].values():
        arguments = case(torch.float32)
        twins = run(kernel(name).invariant, arguments), run(kernel(name).reference, arguments)
        for found, expected in zip(*twins, strict=True):
            assert found.dtype == expected.dtype
            scale = max(float(expected.detach().abs().max()), 1e-3) if expected.numel() else 1.0
            torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=BOUNDS[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_invariant_products_of_a_token_do_not_depend_on_the_others(dtype: torch.dtype):
    """Values; and gradients are those of `linear`."""
    x = torch.randn(3, 27, 40, dtype=dtype, requires_grad=True)
    weight = torch.randn(64, 40, dtype=dtype, requires_grad=True)
    twin = kernel("linear").invariant
    assert twin is not None
    whole = run(twin, (x, weight))
    assert torch.equal(whole[0][1:2, 7:8], twin(x[1:2, 7:8], weight))
    for found, expected in zip(whole, run(kernel("linear").reference, (x, weight)), strict=True):
        torch.testing.assert_close(found.float(), expected.float(), rtol=1e-2, atol=2 * BOUNDS[dtype])


@pytest.mark.parametrize("count", [1, 3])
def test_invariant_functions_of_a_token_do_not_depend_on_the_others(count: int):
    """Vectorized loops compute the last elements of a tensor by another function, or in another order."""
    x = torch.randn(67, 40) * 3
    scores = torch.rand(67, 6)
    matrices = torch.randn(67, 4, 4)
    experts = torch.arange(6).expand(67, -1)
    cases = {
        "gate_scores": (x,),
        "gate_weights": (scores, experts, 1.5),
        "clamped_swiglu": (x, x.flip(0), 2.0),
        "rms_norm": (x, torch.ones(40), 1e-6),
        "sinkhorn": (matrices, 20, 1e-6),
    }
    for name, (first, *rest) in cases.items():
        twin = kernel(name).invariant
        assert twin is not None
        some = [y[5 : 5 + count] if isinstance(y, Tensor) and len(y) == 67 else y for y in rest]
        assert torch.equal(twin(first, *rest)[5 : 5 + count], twin(first[5 : 5 + count], *some)), name


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_eager_is_deterministic(name: str, case: Case):
    arguments = case(torch.float32)
    for once, again in zip(*(run(kernel(name).eager, arguments) for _ in range(2)), strict=True):
        assert torch.equal(once, again)


def reversed_strides(x: Tensor) -> Tensor:
    return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))


def odd_start(x: Tensor) -> Tensor:
    return x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)


@pytest.mark.parametrize("layout", [reversed_strides, odd_start])
@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_eager_takes_tensors_of_any_layout(name: str, case: Case, layout: Callable[[Tensor], Tensor]):
    arguments = tuple(
        layout(x.detach()).requires_grad_(x.requires_grad) if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in case(torch.float64)
    )
    for found, expected in zip(*(run(f, arguments) for f in (kernel(name).eager, kernel(name).reference)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_eager_works_under_checkpoint(name: str):
    """Under activation checkpointing, saved tensors can be unpacked only once."""
    arguments = next(iter(CASES[name].values()))(torch.float32)

    def again(*inputs: Any) -> Any:
        return checkpoint(kernel(name).eager, *inputs, use_reentrant=False)

    for found, expected in zip(run(again, arguments), run(kernel(name).eager, arguments), strict=True):
        assert torch.equal(found, expected)


def test_expert_gradients_of_many_tokens_are_summed_in_fp32():
    """Gradients are summed over chunks of tokens; sums in bf16 would lose more with every chunk."""
    tokens = 30_000
    x, upstream = torch.randn(tokens, 8) + 0.5, torch.randn(tokens, 8) + 0.3
    matrices = (torch.randn(1, *shape) * 0.2 for shape in ((6, 8), (8, 6), (6, 8)))
    rounded = [tensor.bfloat16() for tensor in (x, *matrices)]

    def gradients(function: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        x, *matrices = (tensor.to(dtype).requires_grad_() for tensor in rounded)
        weights = torch.ones(tokens, dtype=torch.promote_types(dtype, torch.float32))
        out = function(x, torch.arange(tokens), weights, *matrices, [tokens], 7.0)
        return torch.autograd.grad(out, matrices, upstream.to(out.dtype))

    expected = gradients(kernel("expert_mlp").reference, torch.float64)
    for found, exact in zip(gradients(kernel("expert_mlp").eager, torch.bfloat16), expected, strict=True):
        assert (found.double() - exact).norm() < 3e-3 * exact.norm()


def small_case(name: str) -> tuple[Any, ...]:
    """Inputs small enough for finite differences."""
    from .inputs import PACKED, attention, experts, index_case, leaf, pool_case, read_case, write_case

    cases = {
        "expert_mlp": experts(4),
        "hyper_read": read_case(2, 2, 3),
        "hyper_write": write_case(2),
        "pool_windows": pool_case(4, True, PACKED[:1, 84:97]),
        "sinkhorn": CASES["sinkhorn"]["one"],
        "linear_cross_entropy": CASES["linear_cross_entropy"]["one"],
        "token_logprobs": lambda dtype: (leaf(dtype, 3, 4), leaf(dtype, 5, 4), torch.tensor([4, 0, 4])),
        "sparse_attention": attention("chosen", heads=1, width=2, before=155),
        "index_divergence": index_case("chosen", PACKED[:1, 95:120]),
    }
    return cases[name](torch.float64)


@pytest.mark.parametrize(
    "name",
    [
        *("expert_mlp", "hyper_read", "hyper_write", "pool_windows", "sinkhorn", "linear_cross_entropy"),
        *("token_logprobs", "sparse_attention", "index_divergence"),
    ],
)
def test_eager_gradcheck(name: str):
    assert torch.autograd.gradcheck(
        kernel(name).eager, small_case(name), fast_mode=name in ("sparse_attention", "expert_mlp", "index_divergence")
    )


def test_every_kernel_has_cases():
    operations = {name for name, value in vars(kernels).items() if isinstance(value, Kernel)}
    elsewhere = {"gate_scores", "gate_weights", "index_recall", "window_logsumexp"}
    elsewhere |= {"index_topk", "route", "sort_pairs", "expert_linear", "lowbit_linear", "lowbit_expert_linear"}
    elsewhere |= {"gathered_lowbit_linear"}
    elsewhere |= {"fp8_linear", "fp8_expert_linear", "encode_rows"}
    assert operations == {*CASES, *elsewhere}
