"""Checks that each kernel of a GPU equals its definition in plain torch, values and gradients."""

import os
from typing import Any

import torch

from bench.gpu.part import Bench, Found
from seektune.kernels import Kernel
from tests.gpu.agreement import BOUNDS, definition, exact, largest_error, released
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
