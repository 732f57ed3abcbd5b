"""Products with the LM head's weight in fp32, of which a low-precision head is cast a block at a time.

Shapes: N tokens, D width, V vocabulary.
"""

from collections.abc import Iterator

from torch import Tensor

from seektune.kernels.reference.precision import upcast

BLOCK = 8192
"""Rows of a low-precision head that exist in fp32 at a time."""


def head_logits(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """`[N, V]`, in hidden's dtype."""
    if weight_VD.dtype == hidden_ND.dtype:
        return hidden_ND @ weight_VD.T
    logits = hidden_ND.new_empty(len(hidden_ND), len(weight_VD))
    for rows, block in _blocks(weight_VD):
        logits[:, rows] = hidden_ND @ block.T
    return logits


def through_head(slope_NV: Tensor, weight_VD: Tensor) -> Tensor:
    """The gradient of the head's input, `[N, D]`, from that of the logits."""
    if weight_VD.dtype == slope_NV.dtype:
        return slope_NV @ weight_VD
    out = slope_NV.new_zeros(len(slope_NV), weight_VD.shape[1])
    for rows, block in _blocks(weight_VD):
        out.addmm_(slope_NV[:, rows], block)
    return out


def _blocks(weight_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the head in fp32; all at once would take twice the head's memory."""
    for start in range(0, len(weight_VD), BLOCK):
        rows = slice(start, start + BLOCK)
        yield rows, upcast(weight_VD[rows])
