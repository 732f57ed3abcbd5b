"""Kernels on the meta device, where a dry run calls each with the same shapes in every layer and micro-batch.

The shapes of a call's results and gradients are found once; an equal call runs none of its operations.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import _disable_current_modes


@dataclass(frozen=True)
class TensorForm:
    """Everything that is known of a tensor on the meta device."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool

    def empty(self) -> Tensor:
        """A new tensor of this form, without a graph."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


@dataclass(frozen=True)
class CallForm:
    """What a call returns, and what its backward reads and returns."""

    result: Any
    """With forms in place of tensors."""
    gradients: tuple[TensorForm | None, ...]
    """Of each tensor among the arguments."""
    saves: bool
    """Whether backward reads saved tensors, so that activation checkpointing runs the call again."""


def run_on_meta(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """As `function(*args)` with tensors on the meta device, gradients included."""
    tensors = list(_tensors(args))
    if not all(x.is_meta and type(x) in (Tensor, torch.nn.Parameter) for x in tensors):
        return function(*args)
    call = _call_form(function, _changed(args, _form), torch.is_grad_enabled())
    forms = list(_tensors(call.result))
    if any(form.requires_grad for form in forms):
        results = iter(_Shaped.apply(call, forms, *tensors))
    else:
        results = (form.empty() for form in forms)
    return _changed(call.result, lambda form: next(results))


@cache
def _call_form(function: Callable[..., Any], args: Any, with_grad: bool) -> CallForm:
    """Found by a call with new tensors; recomputation and whoever records operations do not see it."""
    saved = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x)
        # an operation that saves its own result would keep itself alive through `x`
        return x.detach()

    args = _changed(args, lambda form: form.empty().requires_grad_(form.requires_grad))
    with _disable_current_modes(), torch.set_grad_enabled(with_grad), saved_tensors_hooks(pack, lambda x: x):
        result = function(*args)
        saves = len(saved) > 0
        gradients = _gradients(list(_tensors(args)), [x for x in _tensors(result) if x.requires_grad])
    return CallForm(_changed(result, _form), tuple(None if x is None else _form(x) for x in gradients), saves)


def _gradients(inputs: list[Tensor], outputs: list[Tensor]) -> list[Tensor | None]:
    """Of each input; None where it has none."""
    leaves = [x for x in inputs if x.requires_grad]
    if not outputs:
        return [None] * len(inputs)
    upstream = [torch.empty_like(x) for x in outputs]
    found = iter(torch.autograd.grad(outputs, leaves, upstream, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in inputs]


class _Shaped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, forms, *tensors):  # type: ignore[no-untyped-def]
        ctx.call = call
        if call.saves:
            ctx.save_for_backward(*tensors)
        results = tuple(form.empty() for form in forms)
        ctx.mark_non_differentiable(*(x for x, form in zip(results, forms, strict=True) if not form.requires_grad))
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        if ctx.call.saves:
            _ = ctx.saved_tensors  # which recomputes them
        return None, None, *(None if form is None else form.empty() for form in ctx.call.gradients)


def _form(x: Tensor) -> TensorForm:
    return TensorForm(x.shape, x.stride(), x.dtype, x.requires_grad)


def _tensors(x: Any) -> Iterator[Any]:
    """The tensors, or forms of tensors, of arguments or of a result, in order."""
    if isinstance(x, (Tensor, TensorForm)):
        yield x
    elif isinstance(x, (list, tuple)) or is_dataclass(x):
        for each in x if isinstance(x, (list, tuple)) else vars(x).values():
            yield from _tensors(each)


def _changed(x: Any, change: Callable[[Any], Any]) -> Any:
    """The same with each tensor, or form, changed; sequences become tuples."""
    if isinstance(x, (Tensor, TensorForm)):
        return change(x)
    if isinstance(x, (list, tuple)):
        return tuple(_changed(each, change) for each in x)
    if is_dataclass(x) and not isinstance(x, type):
        return replace(x, **{name: _changed(value, change) for name, value in vars(x).items()})
    return x
