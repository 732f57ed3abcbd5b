"""DeepGEMM's grouped products of FP8 rows with FP8 or FP4 weights as `fp8_expert_linear`: forward.

The gradient of the rows is our low-bit product. Shapes: N rows, M rows with padding, I inputs, O outputs, E experts.
"""

from collections.abc import Sequence
from importlib import import_module

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels.deepseek.deep_gemm import padded_rows
from seektune.kernels.reference.dequantize import decoded_columns
from seektune.kernels.reference.lowbit_linear import expert_input_gradient

PACKAGE = "deep_gemm"
MULTIPLE = 128
"""Of inputs and outputs: whole blocks of scales."""
HOPPER = 9
FP4_GENERATIONS = (10, 12)
"""Compute capabilities, major number, for which DeepGEMM tests FP4 weights; those of FP8 begin with Hopper."""


def supports(x_NI: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor], counts: Sequence[int]) -> bool:
    """Whether the kernel takes these arguments: bf16 rows, and experts that are slices of one tensor."""
    outputs = weights[0].shape[0]
    aligned = outputs % MULTIPLE == 0 and decoded_columns(weights[0]) % MULTIPLE == 0
    whole = stacked(weights) is not None and stacked(scales) is not None
    if x_NI.dtype != torch.bfloat16 or not len(x_NI) or not aligned or not whole:
        return False
    generation = generation_of(x_NI.device)
    if weights[0].dtype == torch.int8:
        return generation in FP4_GENERATIONS
    # later ones round scales to powers of two
    return generation == HOPPER or (generation > HOPPER and scales[0].dtype == torch.float8_e8m0fnu)


def trains(x_NI: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor], counts: Sequence[int]) -> bool:
    """Whether it has all gradients that training needs; packed weights are frozen."""
    return True


def generation_of(device: torch.device) -> int:
    """The major number of a GPU's compute capability."""
    return torch.cuda.get_device_capability(device)[0]


def stacked(parts: Sequence[Tensor]) -> Tensor | None:
    """`[E, ...]` without a copy, if the parts are consecutive slices of one tensor."""
    first = parts[0]
    same = all(each.untyped_storage().data_ptr() == first.untyped_storage().data_ptr() for each in parts)
    places = [each.storage_offset() for each in parts]
    if not same or places != [places[0] + n * first.numel() for n in range(len(parts))] or not first.is_contiguous():
        return None
    return first.as_strided((len(parts), *first.shape), (first.numel(), *first.stride()))


def fp8_expert_linear(
    x_NI: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor], counts: Sequence[int]
) -> Tensor:
    """See `reference.fp8_expert_linear`; each expert's rows are padded to DeepGEMM's alignment."""
    out: Tensor = _Product.apply(x_NI, list(counts), *weights, *scales)
    return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_NI, counts, *packed):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*packed)
        ctx.counts = counts
        return _multiply(x_NI, counts, stacked(packed[: len(counts)]), stacked(packed[len(counts) :]))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_NO):  # type: ignore[no-untyped-def]
        packed = ctx.saved_tensors
        experts = len(ctx.counts)
        busy = [expert for expert, count in enumerate(ctx.counts) if count]
        used = *(packed[e] for e in busy), *(packed[experts + e] for e in busy)
        gradient = expert_input_gradient
        if grad_NO.is_cuda:
            gradient = import_module("seektune.kernels.triton.lowbit_linear").input_gradient
        return gradient(grad_NO, [ctx.counts[e] for e in busy], used), None, *([None] * len(packed))


def _multiply(x_NI: Tensor, counts: list[int], weights: Tensor, scales: Tensor) -> Tensor:
    encode_rows = import_module("seektune.kernels").encode_rows
    library = import_module(PACKAGE)
    place_N, layout_M = padded_rows(counts, x_NI.device)
    codes_NI, factors_NK = encode_rows(x_NI)
    codes_MI = codes_NI.new_zeros(len(layout_M), codes_NI.shape[1])
    codes_MI.view(torch.uint8)[place_N] = codes_NI.view(torch.uint8)
    factors_MK = factors_NK.new_ones(len(layout_M), factors_NK.shape[1])
    factors_MK[place_N] = factors_NK
    out_MO = x_NI.new_empty(len(layout_M), weights.shape[1])
    recipes = {"recipe_a": (1, 128), "recipe_b": (1, 32)} if weights.dtype == torch.int8 else {}
    library.m_grouped_fp8_fp4_gemm_nt_contiguous(
        (codes_MI, factors_MK),
        (weights, scales.float()),
        out_MO,
        layout_M,
        disable_ue8m0_cast=generation_of(x_NI.device) == HOPPER,
        **recipes,
    )
    return out_MO[place_N]
