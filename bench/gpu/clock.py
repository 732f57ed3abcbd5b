"""Seconds and memory of work on a device."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from bench.gpu.part import Bench, Found

BF16 = torch.bfloat16


def seconds(bench: Bench, work: Callable[[], object], repeats: int = 5) -> float:
    """Median of some runs after two; by CUDA's events on a GPU."""
    if bench.tiny:
        repeats = 1
    clock = _on_gpu if bench.device == "cuda" else _on_cpu
    return median([clock(work) for _ in range(repeats + 2)][2:])


def launch_milliseconds(bench: Bench, work: Callable[[], object], repeats: int = 3) -> float | None:
    """Median of the time that the host needs to launch work on an idle GPU; None on a CPU.

    Where it is below the work's own time, the GPU does not wait for launches, and CUDA graphs cannot make it faster.
    """
    if bench.device != "cuda":
        return None
    spent = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        spent.append(_on_cpu(work))
    torch.cuda.synchronize()
    return round(median(spent) * 1e3, 3)


def _on_gpu(work: Callable[[], object]) -> float:
    begin = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def _on_cpu(work: Callable[[], object]) -> float:
    begin = perf_counter()
    work()
    return perf_counter() - begin


def milliseconds(bench: Bench, work: Callable[[], object], repeats: int = 5) -> float:
    """`seconds` for a table."""
    return round(seconds(bench, work, repeats) * 1e3, 3)


def both_ways(bench: Bench, forward: Callable[[], Tensor], leaves: list[Tensor]) -> Found:
    """Milliseconds of forward, and of backward."""
    out = forward()
    upstream = torch.randn_like(out)

    def backward() -> None:
        torch.autograd.grad(out, leaves, upstream, retain_graph=True)

    return {"forward_ms": milliseconds(bench, forward), "backward_ms": milliseconds(bench, backward)}


def forget_peak(bench: Bench) -> None:
    """Begin a new peak of memory."""
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_gb(bench: Bench) -> float | None:
    """The largest memory of tensors since then, 10^9 bytes; None on a CPU."""
    return gigabytes(torch.cuda.max_memory_allocated()) if bench.device == "cuda" else None


def gigabytes(size: float) -> float:
    """10^9 bytes."""
    return round(size / 1e9, 2)


def leaf(bench: Bench, *shape: int) -> Tensor:
    """Random bf16 that takes a gradient."""
    return torch.randn(shape, device=bench.device, dtype=BF16, requires_grad=True)
