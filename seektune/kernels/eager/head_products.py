"""Products with the LM head's weight in fp32, of which a low-precision head is cast a block at a time.

Shapes: N tokens, D width, V vocabulary.
"""

from collections.abc import Iterator

import torch
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


class HeadGradients:
    """Gradients of the head's input, `[N, D]`, and of its weight, `[V, D]`, from slopes of some tokens at a time."""

    def __init__(self, hidden_ND: Tensor, weight_VD: Tensor, needs_hidden: bool, needs_weight: bool):
        wide = torch.promote_types(weight_VD.dtype, torch.float32)
        self._weight_VD = weight_VD
        self._hidden = torch.empty_like(hidden_ND) if needs_hidden else None
        self._weight = torch.zeros_like(weight_VD, dtype=wide) if needs_weight else None
        self.needed = needs_hidden or needs_weight

    def add(self, tokens: slice, slope: Tensor, hidden: Tensor) -> None:
        """Take the gradient of the logits of some tokens; `hidden` is their input in the slope's dtype."""
        if self._hidden is not None:
            self._hidden[tokens] = through_head(slope, self._weight_VD)
        if self._weight is not None:
            torch.addmm(self._weight, slope.T, hidden, out=self._weight)

    def found(self) -> tuple[Tensor | None, Tensor | None]:
        """Both gradients, in the dtypes of input and weight; None for what is not needed."""
        return self._hidden, None if self._weight is None else self._weight.to(self._weight_VD.dtype)


def _blocks(weight_VD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the head in fp32; all at once would take twice the head's memory."""
    for start in range(0, len(weight_VD), BLOCK):
        rows = slice(start, start + BLOCK)
        yield rows, upcast(weight_VD[rows])
