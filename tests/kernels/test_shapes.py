"""Kernels on the meta device return what their definitions return there, gradients and saved tensors included."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from seektune import kernels
from seektune.kernels import Chosen, Kernel, Prefix

from .inputs import CASES

PAIRS = [(name, label) for name, cases in CASES.items() for label in cases]


class Counter(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def on_meta(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.detach().to("meta").requires_grad_(x.requires_grad)
    if isinstance(x, (Prefix, Chosen)):
        return type(x)(*(value.to("meta") for value in vars(x).values()))
    return x


def forms(function: Any, arguments: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Of the results, then of the gradients."""
    found = function(*arguments)
    results = list(found) if isinstance(found, tuple) else [found]
    leaves = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]
    told = [(x.shape, x.stride(), x.dtype, x.device, x.requires_grad) for x in results]
    graded = [x for x in results if x.requires_grad]
    gradients = torch.autograd.grad(graded, leaves, [torch.empty_like(x) for x in graded], allow_unused=True)
    return told + [() if x is None else (x.shape, x.dtype, x.device) for x in gradients]


def kernel(name: str) -> Kernel:
    found = vars(kernels)[name]
    assert isinstance(found, Kernel)
    return found


@pytest.mark.parametrize(("name", "label"), PAIRS)
def test_results_and_gradients_have_the_forms_of_the_definition(name: str, label: str) -> None:
    arguments = tuple(map(on_meta, CASES[name][label](torch.bfloat16)))
    expected = forms(kernel(name).reference, arguments)
    assert [forms(kernel(name), arguments) for _ in range(2)] == [expected] * 2


def test_an_equal_call_runs_no_operation_but_new_tensors() -> None:
    arguments = tuple(map(on_meta, CASES["hyper_read"]["33"](torch.float32)))
    kernel("hyper_read")(*arguments)
    with Counter() as counter:
        kernel("hyper_read")(*arguments)
    assert counter.count == 3


def test_a_result_without_a_gradient_has_none() -> None:
    logits = torch.empty(5, 8, device="meta", requires_grad=True)
    experts, weights, scores = kernels.route(logits, torch.empty(8, device="meta"), 2, 1.0)
    assert (experts.dtype, experts.requires_grad) == (torch.int64, False)
    assert weights.requires_grad
    assert scores.requires_grad
    with torch.no_grad():
        assert not kernels.route(logits, torch.empty(8, device="meta"), 2, 1.0)[1].requires_grad


@pytest.mark.parametrize("name", CASES)
def test_checkpointing_recomputes_a_call_whose_definition_saves_tensors(name: str) -> None:
    arguments = tuple(map(on_meta, next(iter(CASES[name].values()))(torch.float32)))

    def recomputed(function: Any) -> int:
        runs = 0

        def counted(*inputs: Any) -> Any:
            nonlocal runs
            runs += 1
            return function(*inputs)

        forms(lambda *inputs: checkpoint(counted, *inputs, use_reentrant=False), arguments)
        return runs

    assert recomputed(kernel(name)) == recomputed(kernel(name).reference)
