"""DeepGEMM's grouped bf16 products as `expert_linear`: forward and the gradient of the rows, not of the weights.

Shapes: N rows, M rows with padding, I inputs, O outputs, E experts.
"""

from importlib import import_module

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PACKAGE = "deep_gemm"
MULTIPLE = 64
"""Of inputs and outputs; DeepGEMM's tests use such widths."""


def supports(x_NI: Tensor, weight_EOI: Tensor, counts: list[int]) -> bool:
    """Whether the kernel takes these arguments: the weights are frozen, as their gradient is another layout."""
    learns = torch.is_grad_enabled() and weight_EOI.requires_grad
    aligned = weight_EOI.shape[1] % MULTIPLE == 0 and weight_EOI.shape[2] % MULTIPLE == 0
    bf16 = x_NI.dtype == weight_EOI.dtype == torch.bfloat16
    return bf16 and aligned and not learns and len(x_NI) > 0


def trains(x_NI: Tensor, weight_EOI: Tensor, counts: list[int]) -> bool:
    """Whether the kernel has all gradients that training needs."""
    return not weight_EOI.requires_grad


def expert_linear(x_NI: Tensor, weight_EOI: Tensor, counts: list[int]) -> Tensor:
    """See `reference.expert_linear`; each expert's rows are padded to DeepGEMM's alignment."""
    out: Tensor = _GroupedProduct.apply(x_NI, weight_EOI, counts)
    return out


class _GroupedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_NI, weight_EOI, counts):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight_EOI)
        ctx.counts = counts
        gemm = import_module(PACKAGE).m_grouped_bf16_gemm_nt_contiguous
        return _padded(gemm, x_NI, weight_EOI, counts, weight_EOI.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_NO):  # type: ignore[no-untyped-def]
        (weight_EOI,) = ctx.saved_tensors
        gemm = import_module(PACKAGE).m_grouped_bf16_gemm_nn_contiguous
        return _padded(gemm, grad_NO, weight_EOI, ctx.counts, weight_EOI.shape[2]), None, None


def _padded(gemm, rows_NI: Tensor, weights: Tensor, counts: list[int], outputs: int) -> Tensor:  # type: ignore[no-untyped-def]
    """The product of rows that are padded for it, `[N, outputs]`."""
    place_N, layout_M = padded_rows(counts, rows_NI.device)
    rows_MI = rows_NI.new_zeros(len(layout_M), rows_NI.shape[1])
    rows_MI[place_N] = rows_NI
    out_MO = rows_NI.new_empty(len(layout_M), outputs)
    gemm(rows_MI, weights.contiguous(), out_MO, layout_M)
    return out_MO[place_N]


def padded_rows(counts: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The place of each row, `[N]`, and the expert of each padded one, int32 `[M]`, -1 for none; sets the alignment."""
    library = import_module(PACKAGE)
    alignment = library.get_theoretical_mk_alignment_for_contiguous_layout()
    library.set_mk_alignment_for_contiguous_layout(alignment)
    padded = [-(-count // alignment) * alignment for count in counts]
    expert_N = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    gap_E = (torch.tensor(padded) - torch.tensor(counts)).cumsum(0).roll(1)
    gap_E[0] = 0
    place_N = (torch.arange(sum(counts)) + gap_E[expert_N]).to(device)
    layout_M = torch.full((sum(padded),), -1, dtype=torch.int32, device=device)
    layout_M[place_N] = expert_N.to(device, torch.int32)
    return place_N, layout_M
