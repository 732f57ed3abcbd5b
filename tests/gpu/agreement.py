"""Operations of a GPU against their definitions: bounds, exact arguments, released shapes; needs no pytest."""

from typing import Any

import torch
from torch import Tensor

from seektune.kernels import Chosen, Prefix, quantize_fp4, quantize_fp8
from seektune.sequence import SequenceLayout
from tests.kernels.inputs import leaf, wide
from tests.kernels.twins import kernel, run

BOUNDS = {torch.float32: 5e-5, torch.bfloat16: 3e-2}


def agree(found: list[Tensor], expected: list[Tensor], bound: float) -> None:
    worst = largest_error(found, expected)
    assert worst <= bound, f"differs from its definition by {worst:.2e} of the largest value, more than {bound:g}"


def largest_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, as a share of the largest value of each tensor; NaN counts as infinite."""
    worst = 0.0
    for x, y in zip(found, expected, strict=True):
        assert x.shape == y.shape
        if y.numel():
            scale = max(float(y.detach().abs().max()), 1e-3)
            error = float((x.detach().cpu().double() - y.detach().cpu().double()).abs().max()) / scale
            worst = max(worst, error if error == error else float("inf"))
    return worst


def exact(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same numbers in fp64, whose results are taken for true."""
    return tuple(
        x.detach().double().requires_grad_(x.requires_grad) if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in arguments
    )


def definition(name: str, arguments: tuple[Any, ...], dtype: torch.dtype) -> list[Tensor]:
    """What the reference computes, in fp64 where that is the same operation."""
    # clamps cut bf16 elsewhere
    return run(kernel(name).reference, arguments if dtype == torch.bfloat16 else exact(arguments))


def released(kind: str, dtype: torch.dtype, length: int) -> tuple[Any, ...]:
    """Attention of V4-Flash: 64 heads of 512 channels, 128 neighbours, and entries as CSA or HCA sees them."""
    layout = SequenceLayout.from_documents(torch.tensor([[1] * (length // 3) + [2] * (length - length // 3)]))
    windows = layout.windows(4 if kind == "chosen" else 128)
    entries = 0 if kind == "window" else windows.last_BE.shape[1]
    first, count = (x * min(entries, 1) for x in (windows.first_BT, windows.count_BT))
    visible: Any = Prefix(first, count)
    if kind == "chosen":
        index = torch.rand(1, length, entries).argsort(-1)[..., :512]
        visible = Chosen(torch.where((index >= first[..., None]) & (index < (first + count)[..., None]), index, -1))
    inputs = leaf(dtype, 1, length, 64, 512), leaf(dtype, 1, length, 512), leaf(dtype, 1, entries, 512)
    return *inputs, leaf(wide(dtype), 64), layout.positions, 128, visible


def frozen_experts(form: str) -> tuple[str, tuple[Any, ...]]:
    """The operation and arguments of products of eight frozen experts, some without tokens."""
    counts = [40, 0, 7, 300, 1, 0, 65, 3]
    x = leaf(torch.bfloat16, 416, 160)
    weights = torch.randn(8, 128, 160)
    if form == "bf16":
        return "expert_linear", (x, weights.bfloat16(), counts)
    pack = {"fp4": quantize_fp4, "fp8": quantize_fp8}[form]
    packed, scales = zip(*(pack(weight) for weight in weights), strict=True)
    return "lowbit_expert_linear", (x, packed, scales, counts)


def frozen_maps(form: str, groups: int) -> tuple[Any, ...]:
    """Arguments of `lowbit_linear`."""
    x = leaf(torch.bfloat16, 50, 160) if groups == 1 else leaf(torch.bfloat16, 50, groups, 160)
    pack = {"fp4": quantize_fp4, "fp8": quantize_fp8}[form]
    return x, *pack(torch.randn(256, 160)), groups


def index_case(width: int) -> tuple[Any, ...]:
    """Arguments of `index_topk` in whole numbers, whose scores are exact in any order of summation."""
    documents = torch.tensor([[1] * 460 + [2] * 3 + [0] * 6 + [3] * 451])
    length = documents.shape[1]
    windows = SequenceLayout.from_documents(documents).windows(4)
    shapes = (1, length, 8, width), (1, length // 4, width), (1, length, 8)
    q, keys, weights = (torch.randint(-3, 4, shape).float() for shape in shapes)
    return q, keys, weights, Prefix(windows.first_BT, windows.count_BT), 64
