"""Layers that compute with the values of a low-bit checkpoint, for quantization-aware training of the weights.

Weights keep their names, dtypes and gradients; each forward pass rounds them as an export does, and the inputs of FP8
and FP4 products as serving does. Gradients pass straight through both. Shapes: N tokens, P token-expert pairs, D width,
F expert width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from seektune.checkpoint.formats import FORMATS, QUANTIZED
from seektune.kernels import (
    add_pairs,
    expert_linear,
    fake_quantize_fp8,
    fake_quantize_weight,
    gather_tokens,
    grouped_linear,
    linear,
    upcast,
    weighted_swiglu,
)
from seektune.kernels.reference.quantize import ACTIVATION_GROUP
from seektune.model.linear import GroupedLinear, Linear
from seektune.model.moe import Experts
from seektune.model.quantized import kind_of_experts, replace

ROUNDED_AS = {"fp4": "fp4", "fp8": "fp8", "fp8_f32_pow2": "fp8"}
"""The kinds of formats that training can round to, and the values that each holds: scales are powers of two."""


class FakeQuantizedLinear(Linear):
    """A linear layer on rounded weights; inputs are rounded too, except those of a grouped layer.

    Serving multiplies `wo_a` in bf16, as the official code does.
    """

    def __init__(self, base: Linear, kind: str):
        super().__init__(base.in_features, base.out_features, torch.device("meta"), base.weight.dtype)
        self.weight = base.weight
        self.kind = kind
        self.groups = base.groups if isinstance(base, GroupedLinear) else None

    def forward(self, x: Tensor) -> Tensor:
        """`[..., O]`, or of a grouped layer `[..., G, O / G]`."""
        weight = fake_quantize_weight(self.weight, self.kind)
        if self.groups is not None:
            return grouped_linear(x, weight, self.groups)
        return linear(fake_quantize_fp8(x, ACTIVATION_GROUP), weight)


class FakeQuantizedExperts(nn.Module):
    """`Experts` on rounded weights and inputs."""

    def __init__(self, base: Experts, kind: str):
        super().__init__()
        self.limit = base.limit
        self.kind = kind
        self.w1 = base.w1
        self.w2 = base.w2
        self.w3 = base.w3

    def forward(self, x_ND: Tensor, weights_P: Tensor, counts: list[int], tokens_P: Tensor | None = None) -> Tensor:
        """As `Experts.forward`; with `tokens_P`, every token must have the same number of pairs."""
        x_ND = fake_quantize_fp8(x_ND, ACTIVATION_GROUP)
        x_PD = x_ND if tokens_P is None else gather_tokens(x_ND, tokens_P)
        gate_PF = expert_linear(x_PD, fake_quantize_weight(self.w1, self.kind), counts)
        up_PF = expert_linear(x_PD, fake_quantize_weight(self.w3, self.kind), counts)
        inner_PF = fake_quantize_fp8(weighted_swiglu(gate_PF, up_PF, weights_P, self.limit), ACTIVATION_GROUP)
        out_PD = expert_linear(inner_PF, fake_quantize_weight(self.w2, self.kind), counts)
        return upcast(out_PD) if tokens_P is None else add_pairs(out_PD, tokens_P, len(x_ND))


def fake_quantize_modules(model: nn.Module, format: str) -> None:
    """Replace the modules of all matrices that the checkpoint format stores in FP4 or FP8; parameters stay the same.

    Raises:
        ValueError: the format cannot hold the shape of a matrix.
    """
    kind_of = FORMATS[format].kind
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear) and (kind := kind_of(f"{name}.weight")) in ROUNDED_AS:
            _check_shape(f"{name}.weight", module.weight, kind)
            replace(model, name, FakeQuantizedLinear(module, ROUNDED_AS[kind]))
        elif isinstance(module, Experts):
            kind = kind_of_experts(name, "w1", len(module.w1), kind_of)
            for matrix, weight in module.named_parameters():
                _check_shape(f"{name}.{matrix}", weight[0], kind)
            replace(model, name, FakeQuantizedExperts(module, ROUNDED_AS[kind]))


def rounded_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that are rounded before they are used."""
    for module in model.modules():
        if isinstance(module, FakeQuantizedLinear | FakeQuantizedExperts):
            yield from module.parameters()


def _check_shape(name: str, weight: Tensor, kind: str) -> None:
    if not QUANTIZED[kind].fits(tuple(weight.shape)):
        columns = QUANTIZED[kind].block[1]
        raise ValueError(
            f"train.qat cannot round {name} of shape {list(weight.shape)} to {kind}, which needs a multiple of "
            f"{columns} columns; use fp8"
        )
