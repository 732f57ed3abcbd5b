"""Inject adapters into a model: its modules are replaced by those of `layers` and `dora`, under the same names."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from torch import nn

from seektune.checkpoint.formats import PLAIN, QUANTIZED, format_named
from seektune.checkpoint.stored import encode_changed
from seektune.kernels import Rounding
from seektune.lora.dora import DoraLinear
from seektune.lora.layers import (
    AdaptedEmbedding,
    AdaptedHead,
    AdaptedLinear,
    AdaptedMatrix,
    RoundedLinear,
    RoundedMatrix,
)
from seektune.lora.low_rank import ExpertLowRank, LowRank
from seektune.lora.state import TRAINED, Adapted
from seektune.model.head import Head
from seektune.model.moe import Experts
from seektune.model.quantized import (
    MATRICES,
    QuantizedExperts,
    QuantizedLinear,
    as_quantized_experts,
    as_quantized_linear,
    replace,
)


@dataclass(frozen=True)
class AdapterShape:
    """Rank, scaling and variant of new adapters."""

    rank: int
    alpha: float
    dropout: float = 0.0
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank (arXiv:2312.03732)."""
    dora: bool = False
    shared_a: bool = False
    """All experts share the A of a matrix."""
    merge_into: str | None = None
    """Train through the rounding of this checkpoint format."""

    @property
    def scaling(self) -> float:
        """The factor of B A."""
        return self.alpha / (sqrt(self.rank) if self.rslora else self.rank)


def adapt(model: nn.Module, names: Sequence[str], shape: AdapterShape, adapter: str = TRAINED) -> None:
    """Freeze the model and add a new, uninitialized adapter to the named modules.

    Raises:
        ValueError: a module does not support the shape or already has an adapter, or the adapter's name is invalid.
    """
    try:
        nn.ModuleDict({adapter: nn.Identity()})
    except KeyError as error:
        raise ValueError(f"an adapter cannot be named {adapter!r}: {error.args[0]}") from None
    model.requires_grad_(False)
    for name in names:
        module = make_adaptable(model, name, shape)
        if adapter in module.lora:
            raise ValueError(f"{name} already has an adapter named {adapter}; unload it or choose another name")
        alone = shape.dora or shape.merge_into or isinstance(module, DoraLinear | RoundedLinear | RoundedMatrix)
        if module.lora and alone:
            raise ValueError(
                f"{name} already has an adapter; DoRA and merge-aware rounding allow only one, so unload it first"
            )
        module.lora[adapter] = _low_rank(module, shape)


def make_adaptable(model: nn.Module, name: str, shape: AdapterShape) -> Adapted:
    """The module of that name, made ready for adapters."""
    parent, _, leaf = name.rpartition(".")
    if leaf in MATRICES and isinstance(model.get_submodule(parent), Experts | QuantizedExperts):
        return _adapted_matrix(model, parent, leaf, shape)
    module = model.get_submodule(name)
    if isinstance(module, nn.Embedding | AdaptedEmbedding | Head | AdaptedHead):
        _plain_only(name, shape)
    if isinstance(module, AdaptedLinear | AdaptedEmbedding):
        return module
    if isinstance(module, nn.Embedding):
        made: Adapted = AdaptedEmbedding(module)
    elif isinstance(module, Head):
        made = AdaptedHead(as_quantized_linear(module, module.weight.detach(), None))
    else:
        assert isinstance(module, nn.Linear | QuantizedLinear)
        base = as_quantized_linear(module, module.weight.detach(), None) if isinstance(module, nn.Linear) else module
        made = _adapted_linear(base, f"{name}.weight", shape)
    replace(model, name, made)
    return made


def _adapted_linear(base: QuantizedLinear, weight: str, shape: AdapterShape) -> AdaptedLinear:
    if shape.dora and shape.merge_into:
        raise ValueError("lora.dora and lora.merge_into cannot be combined")
    if shape.dora:
        return DoraLinear(base)
    into = shape.merge_into
    return RoundedLinear(base, into, rounding_of(weight, into)) if into else AdaptedLinear(base)


def _adapted_matrix(model: nn.Module, experts: str, matrix: str, shape: AdapterShape) -> AdaptedMatrix:
    module = model.get_submodule(experts)
    if isinstance(module, Experts):
        module = as_quantized_experts(module, dict.fromkeys(MATRICES, "f32"))
        replace(model, experts, module)
    assert isinstance(module, QuantizedExperts)
    base = module.matrix(matrix)
    if isinstance(base, AdaptedMatrix):
        return base
    if shape.dora:
        raise ValueError(f"lora.dora does not support routed experts ({experts}); remove them or set it to false")
    weight = f"{experts}.0.{matrix}.weight"
    into = shape.merge_into
    made = RoundedMatrix(base, into, rounding_of(weight, into)) if into else AdaptedMatrix(base)
    module.register_module(matrix, made)
    return made


def _plain_only(name: str, shape: AdapterShape) -> None:
    if shape.dora or shape.merge_into:
        raise ValueError(f"lora.dora and lora.merge_into do not support {name}; remove it from lora.targets")


def rounding_of(released: str, format: str) -> Rounding:
    """The rounding of a format for the weight with that released name: encode and decode."""
    kind = format_named(format).kind(released)
    if kind not in QUANTIZED:
        return lambda values: values.to(PLAIN[kind]).float()
    return lambda values: encode_changed(values, kind).values()


def _low_rank(module: Adapted, shape: AdapterShape) -> LowRank | ExpertLowRank:
    with module.weight.device if isinstance(module, AdaptedEmbedding) else module.place:
        if isinstance(module, AdaptedMatrix):
            return ExpertLowRank(module.shape, shape.rank, shape.scaling, shape.dropout, shape.shared_a)
        groups = module.groups if isinstance(module, AdaptedLinear) else 1
        return LowRank(module.shape, shape.rank, shape.scaling, shape.dropout, groups)
