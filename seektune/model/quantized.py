"""Frozen linear layers and experts that keep their weights as the checkpoint stores them.

FP4 and FP8 weights are parameters of integer dtype, which FSDP shards and gathers like others; they are dequantized
when they are used. Shapes: N tokens, P token-expert pairs, D width, F expert width, E experts, I inputs, O outputs.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from seektune.checkpoint.formats import QUANTIZED
from seektune.checkpoint.lowbit import as_parameters, from_parameters
from seektune.checkpoint.stored import Stored, encode
from seektune.kernels import (
    add_pairs,
    expert_linear,
    expert_mlp,
    fp8_expert_linear,
    fp8_linear,
    gather_tokens,
    gathered_linear,
    gathered_lowbit_linear,
    grouped_linear,
    linear,
    lowbit_expert_linear,
    lowbit_linear,
    upcast,
    weighted_swiglu,
)
from seektune.model.block import Block
from seektune.model.linear import GroupedLinear, WideLinear
from seektune.model.moe import Experts, gathered_mlp
from seektune.model.streamed_parts import StreamedParts

MATRICES = ("w1", "w2", "w3")
"""The matrices of an expert."""
KindOf: TypeAlias = Callable[[str], str]
"""The kind of the tensor with a released name."""


class QuantizedWeight(nn.Module):
    """A frozen weight, plain or quantized with its `scale`.

    If it is streamed, the parameters are on the meta device, and `parts` are views of the checkpoint's file.
    """

    fp8_inputs = False
    """Whether inputs of products with quantized values are rounded to FP8; `Numerics.fp8_inputs`."""

    def __init__(self, weight: Tensor, scale: Tensor | None, parts: StreamedParts | None = None):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = None if scale is None else nn.Parameter(scale, requires_grad=False)
        self.parts = parts

    @property
    def place(self) -> torch.device:
        """The device that computes with it."""
        return self.weight.device if self.parts is None else self.parts.device


class QuantizedLinear(QuantizedWeight):
    """A linear layer `[O, I]`; `groups` and `wide` as in `GroupedLinear` and `WideLinear`.

    Grouped and wide layers never round their inputs: serving multiplies them in bf16 and fp32.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor | None,
        groups: int = 1,
        wide: bool = False,
        parts: StreamedParts | None = None,
    ):
        super().__init__(weight, scale, parts)
        self.groups = groups
        self.wide = wide

    @property
    def rounds(self) -> bool:
        """Whether inputs are rounded to FP8."""
        return self.fp8_inputs and self.scale is not None and self.groups == 1 and not self.wide

    def stored(self) -> tuple[Tensor, Tensor | None]:
        """Weight and scales in the dtypes of the file; a plain weight unchanged."""
        if self.parts is not None:
            return self.parts[0]
        if self.scale is None:
            return self.weight, None
        stored = from_parameters(self.weight, self.scale)
        return stored.weight, stored.scale

    def forward(self, x: Tensor) -> Tensor:
        """The product with the dequantized weight, in x's dtype, or in fp32 if `wide`."""
        return self.input_product(upcast(x) if self.wide else x)

    def input_product(self, x: Tensor) -> Tensor:
        """`product` of the layer's input, which may be rounded."""
        if not self.rounds:
            return self.product(x)
        weight, scale = self.stored()
        assert scale is not None
        return fp8_linear(x, weight, scale)

    def product(self, x: Tensor) -> Tensor:
        """`W x` in x's dtype."""
        weight, scale = self.stored()
        if scale is not None:
            return lowbit_linear(x, weight, scale, self.groups)
        weight = weight.to(x.dtype)
        return linear(x, weight) if self.groups == 1 else grouped_linear(x, weight, self.groups)


class QuantizedMatrix(QuantizedWeight):
    """One matrix of all routed experts, `[E, O, I]`."""

    def forward(self, x_PI: Tensor, counts: list[int]) -> Tensor:
        """`[P, O]` for pairs sorted by expert."""
        if self.scale is None:
            return expert_linear(x_PI, self.weight, counts)
        product = fp8_expert_linear if self.fp8_inputs else lowbit_expert_linear
        return product(x_PI, *self.experts(), counts)

    def gathered(self, x_PI: Tensor, experts_P: Tensor) -> Tensor:
        """`[P, O]` for few pairs, in shapes that do not depend on their experts; not of streamed weights."""
        assert not self.fp8_inputs, "static steps were refused"
        if self.scale is None:
            return gathered_linear(x_PI, experts_P, self.weight)
        stored = from_parameters(self.weight, self.scale)
        assert stored.scale is not None
        return gathered_lowbit_linear(x_PI, experts_P, stored.weight, stored.scale)

    def experts(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Weights and scales of all experts in the dtypes of the file."""
        if self.parts is not None:
            pairs = self.parts[:]
            return [weight for weight, _ in pairs], [scale for _, scale in pairs if scale is not None]
        assert self.scale is not None
        stored = from_parameters(self.weight, self.scale)
        assert stored.scale is not None
        return stored.weight.unbind(), stored.scale.unbind()


class QuantizedExperts(nn.Module):
    """`Experts` with frozen weights; the first dim of every matrix is the expert."""

    def __init__(self, limit: float, w1: QuantizedMatrix, w2: QuantizedMatrix, w3: QuantizedMatrix):
        super().__init__()
        self.limit = limit
        self.w1 = w1
        self.w2 = w2
        self.w3 = w3

    def matrix(self, name: str) -> QuantizedMatrix:
        """`w1`, `w2` or `w3`."""
        return {"w1": self.w1, "w2": self.w2, "w3": self.w3}[name]

    def forward(self, x_ND: Tensor, weights_P: Tensor, counts: list[int], tokens_P: Tensor | None = None) -> Tensor:
        """As `Experts.forward`; with `tokens_P`, every token must have the same number of pairs."""
        matrices = self.w1, self.w2, self.w3
        if not torch.is_grad_enabled() and all(type(w) is QuantizedMatrix and w.scale is None for w in matrices):
            tokens_P = torch.arange(len(x_ND), device=x_ND.device) if tokens_P is None else tokens_P
            w1 = self.w1.weight
            w2 = self.w2.weight
            w3 = self.w3.weight
            return expert_mlp(x_ND, tokens_P, weights_P, w1, w2, w3, counts, self.limit)
        x_PD = x_ND if tokens_P is None else gather_tokens(x_ND, tokens_P)
        inner = weighted_swiglu(self.w1(x_PD, counts), self.w3(x_PD, counts), weights_P, self.limit)
        out_PD = self.w2(inner, counts)
        return upcast(out_PD) if tokens_P is None else add_pairs(out_PD, tokens_P, len(x_ND))

    def gathered(self, x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """As `Experts.gathered`."""
        products = [w.gathered for w in (self.w1, self.w2, self.w3)]
        return gathered_mlp(x_ND, experts_NK, weights_NK, products, self.limit)


@torch.no_grad()
def quantize_modules(model: nn.Module, kind_of: KindOf) -> None:
    """Replace the modules of all matrices whose `kind_of` is FP4 or FP8 with frozen quantized ones.

    On the meta device, only the bytes' shapes are set; otherwise the values are quantized.

    Raises:
        ValueError: the experts of a layer are of several kinds, or a value is not finite.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and kind_of(f"{name}.weight") in QUANTIZED:
            weight, scale = quantize_weight(module.weight, kind_of(f"{name}.weight"))
            replace(model, name, as_quantized_linear(module, weight, scale))
        elif isinstance(module, Experts):
            kinds = {matrix: kind_of_experts(name, matrix, len(module.w1), kind_of) for matrix in MATRICES}
            if any(kind in QUANTIZED for kind in kinds.values()):
                replace(model, name, as_quantized_experts(module, kinds))
    for block in (part for part in model.modules() if isinstance(part, Block)):
        for part in block.modules():
            if isinstance(part, QuantizedWeight):
                part.fp8_inputs = block.numerics.fp8_inputs


def quantize_weight(weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Quantized weight and scales in the model's dtypes; uninitialized on the meta device.

    Raises:
        ValueError: the kind cannot hold that shape, or a value is not finite.
    """
    if not QUANTIZED[kind].fits(tuple(weight.shape)):
        raise ValueError(
            f"a weight of shape {list(weight.shape)} cannot be stored as {kind}, so it cannot be quantized"
        )
    if weight.is_meta:
        with torch.device("meta"):
            return as_parameters(Stored.empty(kind, tuple(weight.shape)))
    return as_parameters(encode(Stored("f32", weight), weight.float(), kind))


def as_quantized_linear(module: nn.Linear, weight: Tensor, scale: Tensor | None) -> QuantizedLinear:
    """The frozen counterpart of a linear layer."""
    groups = module.groups if isinstance(module, GroupedLinear) else 1
    return QuantizedLinear(weight, scale, groups, isinstance(module, WideLinear))


def as_quantized_experts(module: Experts, kinds: dict[str, str]) -> QuantizedExperts:
    """The frozen counterpart of a layer's experts; matrices of a low-bit kind are quantized."""
    matrices = {"w1": module.w1, "w2": module.w2, "w3": module.w3}
    frozen = {name: _quantized_matrix(weight, kinds[name]) for name, weight in matrices.items()}
    return QuantizedExperts(module.limit, frozen["w1"], frozen["w2"], frozen["w3"])


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule of that name."""
    parent, _, leaf = name.rpartition(".")
    model.get_submodule(parent).register_module(leaf, module)


def _quantized_matrix(weight_EOI: Tensor, kind: str) -> QuantizedMatrix:
    if kind not in QUANTIZED:
        return QuantizedMatrix(weight_EOI.detach(), None)
    if weight_EOI.is_meta:
        weight, scale = quantize_weight(weight_EOI[0], kind)
        experts = len(weight_EOI)
        return QuantizedMatrix(weight.new_empty(experts, *weight.shape), scale.new_empty(experts, *scale.shape))
    parts = [quantize_weight(weight, kind) for weight in weight_EOI]
    return QuantizedMatrix(torch.stack([weight for weight, _ in parts]), torch.stack([scale for _, scale in parts]))


def kind_of_experts(name: str, matrix: str, experts: int, kind_of: KindOf) -> str:
    """The kind of one matrix of all experts.

    Raises:
        ValueError: they are of several kinds.
    """
    kinds = {kind_of(f"{name}.{expert}.{matrix}.weight") for expert in range(experts)}
    if len(kinds) > 1:
        raise ValueError(
            f"the experts' {matrix} in {name} are of several kinds ({', '.join(sorted(kinds))}); store them as one kind"
        )
    return kinds.pop()
