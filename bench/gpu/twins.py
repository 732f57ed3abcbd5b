"""Checks that each kernel of a GPU equals its definition in plain torch, values and gradients."""

import os
from typing import Any

import torch

from bench.gpu.part import Bench, Found
from seektune.kernels import Kernel, index_topk
from tests.gpu.agreement import (
    BOUNDS,
    definition,
    exact,
    frozen_experts,
    frozen_maps,
    index_case,
    largest_error,
    released,
)
from tests.gpu.to_device import to_device
from tests.kernels.inputs import CASES
from tests.kernels.twins import kernel, run

FEW = ("clamped_swiglu", "sinkhorn")
"""The operations that are checked at toy size."""


def twins(bench: Bench) -> Found:
    """Every operation that has a Triton kernel, at odd shapes, in fp32 and bf16: the largest error of each.

    Raises:
        AssertionError: an operation differs from its definition by more than the bound.
    """
    names = FEW if bench.tiny else [name for name in CASES if kernel(name).triton is not None]
    found: Found = {}
    for name in names:
        for dtype, bound in BOUNDS.items():
            if bench.is_late:
                break
            if bench.tiny and dtype != torch.float32:
                continue
            found[f"{name}, {str(dtype).removeprefix('torch.')}"] = _error(bench, name, dtype, bound)
    return checked(found)


def _error(bench: Bench, name: str, dtype: torch.dtype, bound: float) -> Found:
    worst = 0.0
    cases = dict(list(CASES[name].items())[:1]) if bench.tiny else CASES[name]
    for make in cases.values():
        arguments = make(dtype)
        found = run(on_device(bench, kernel(name)), to_device(arguments, bench.device))
        worst = max(worst, largest_error(found, definition(name, arguments, dtype)))
    return {"cases": len(cases), "error": worst, "bound": bound}


def released_twins(bench: Bench) -> Found:
    """Attention at the released width over windows, prefixes and chosen entries, in bf16 and fp32."""
    found: Found = {}
    length = 40 if bench.tiny else 700
    for dtype, bound in BOUNDS.items():
        for kind in ("window", "prefix", "chosen"):
            if bench.is_late or (bench.tiny and (kind, dtype) != ("window", torch.float32)):
                continue
            arguments = to_device(released(kind, dtype, length), bench.device)
            expected = run(kernel("sparse_attention").reference, exact(arguments))
            error = largest_error(run(kernel("sparse_attention"), arguments), expected)
            found[f"{kind}, {str(dtype).removeprefix('torch.')}"] = {"error": error, "bound": bound}
    return checked(found)


def packed_twins(bench: Bench) -> Found:
    """Products with frozen FP4, FP8 and bf16 weights, in bf16 and of FP8 inputs, and the index's choice."""
    forms = ("fp4",) if bench.tiny else ("fp4", "fp8", "bf16")
    found: Found = {}
    for form in forms:
        name, arguments = frozen_experts(form)
        found[f"{name}, {form}"] = _against_reference(bench, name, arguments)
        if form != "bf16":
            found[f"fp8_expert_linear, {form}"] = _against_reference(bench, "fp8_expert_linear", arguments)
    for form in forms[:2]:
        for groups in (1, 2):
            arguments = frozen_maps(form, groups)
            found[f"lowbit_linear, {form}, {groups} groups"] = _against_reference(bench, "lowbit_linear", arguments)
    for width in () if bench.tiny else (12, 128):
        arguments = index_case(width)
        chosen = index_topk(*to_device(arguments, bench.device)).index_BTK.cpu().sort(dim=-1).values
        expected = index_topk.reference(*arguments).index_BTK.sort(dim=-1).values
        found[f"index_topk, {width} channels"] = {"error": float((chosen != expected).sum()), "bound": 0.0}
    return checked(found)


def _against_reference(bench: Bench, name: str, arguments: tuple[Any, ...]) -> Found:
    found = run(kernel(name), to_device(arguments, bench.device))
    return {"error": largest_error(found, run(kernel(name).reference, arguments)), "bound": 1e-2}


def on_device(bench: Bench, operation: Kernel[Any, Any]) -> Any:
    """The Triton kernel, also on a CPU with Triton's interpreter; without it the eager twin."""
    if bench.device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return operation.on_gpu
    return operation


def checked(found: Found) -> Found:
    """What was found, if no error is above its bound.

    Raises:
        AssertionError: one is.
    """
    wrong = {name: each for name, each in found.items() if not each["error"] <= each["bound"]}
    assert not wrong, f"not equal to the definition: {wrong}; the others: {found}"
    return found
