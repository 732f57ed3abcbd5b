"""Adapters put on a model and taken off it: modules replaced, first values, and the state with and without them."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from math import sqrt
from typing import TypeAlias
from zlib import crc32

import torch
from torch import Tensor, nn

from seektune.checkpoint.formats import PLAIN, QUANTIZED, format_named
from seektune.checkpoint.stored import encode_changed
from seektune.kernels import Rounding
from seektune.lora.config import LoraConfig
from seektune.lora.layers import (
    AdaptedEmbedding,
    AdaptedHead,
    AdaptedLinear,
    AdaptedMatrix,
    DoraLinear,
    ExpertLowRank,
    LowRank,
    RoundedLinear,
    RoundedMatrix,
)
from seektune.lora.targets import adaptable, targeted
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.head import Head
from seektune.model.moe import Experts
from seektune.model.quantized import (
    MATRICES,
    KindOf,
    QuantizedExperts,
    QuantizedLinear,
    as_quantized_experts,
    as_quantized_linear,
    quantize_modules,
    replace,
)
from seektune.model.transformer import TransformerPart

Adapted: TypeAlias = AdaptedLinear | AdaptedMatrix | AdaptedEmbedding
TRAINED = "trained"
"""The adapter that is being trained."""


@dataclass(frozen=True)
class AdapterShape:
    """What adapters look like."""

    rank: int
    alpha: float
    dropout: float = 0.0
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank (arXiv:2312.03732)."""
    dora: bool = False
    shared_a: bool = False
    """All experts of a matrix share one A."""
    merge_into: str | None = None
    """Train through the rounding of this checkpoint format."""

    @property
    def scaling(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (sqrt(self.rank) if self.rslora else self.rank)


def adapt(model: nn.Module, names: Sequence[str], shape: AdapterShape, adapter: str = TRAINED) -> None:
    """Freeze the model and put a new adapter, still without values, on everything named.

    Raises:
        ValueError: the shape does not suit a module, another adapter is in the way, or this one cannot be called so.
    """
    try:
        nn.ModuleDict({adapter: nn.Identity()})
    except KeyError as error:
        raise ValueError(f"an adapter cannot be called {adapter!r}: {error.args[0]}") from None
    model.requires_grad_(False)
    for name in names:
        module = adapted(model, name, shape)
        if adapter in module.lora:
            raise ValueError(f"{name} already has an adapter {adapter}; unload it, or give this one another name")
        alone = shape.dora or shape.merge_into or isinstance(module, DoraLinear | RoundedLinear | RoundedMatrix)
        if module.lora and alone:
            raise ValueError(
                f"{name} has an adapter: with DoRA or merge-aware rounding there can be only one; unload it"
            )
        module.lora[adapter] = _low_rank(module, shape)


def adapted(model: nn.Module, name: str, shape: AdapterShape) -> Adapted:
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
        raise ValueError(f"lora.dora does not cover the routed experts ({experts}); leave them out or set it to false")
    weight = f"{experts}.0.{matrix}.weight"
    into = shape.merge_into
    made = RoundedMatrix(base, into, rounding_of(weight, into)) if into else AdaptedMatrix(base)
    module.register_module(matrix, made)
    return made


def _plain_only(name: str, shape: AdapterShape) -> None:
    if shape.dora or shape.merge_into:
        raise ValueError(f"lora.dora and lora.merge_into do not cover {name}; leave it out of lora.targets")


def rounding_of(released: str, format: str) -> Rounding:
    """How a format rounds the weight of that released name: into its bytes and back."""
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


@torch.no_grad()
def start(model: nn.Module, seed: int, adapter: str = TRAINED) -> None:
    """Values of a new adapter: A as `fresh` makes it, B zero, so that nothing changes yet."""
    for name, module in carriers(model):
        if isinstance(module, DoraLinear):
            module.measure()
        found = module.lora[adapter]
        assert isinstance(found, LowRank | ExpertLowRank)
        found.A.copy_(fresh(name, found.A.shape, seed))
        found.B.zero_()


def fresh(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """A new A, uniform as a linear map starts, for the module of that name.

    Each has a random generator of its own, seeded by the name: the same in any order and however the model is cut.
    """
    generator = torch.Generator().manual_seed(crc32(f"{seed} {name}".encode()))
    bound = shape[-1] ** -0.5
    return torch.empty(tuple(shape)).uniform_(-bound, bound, generator=generator)


def carriers(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """Every module with adapters, by name."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear | AdaptedMatrix | AdaptedEmbedding) and module.lora:
            yield name, module


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without adapters: what the checkpoint it came from holds."""
    return _split(model, lambda name, own: name not in own)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The part of the state dict that adapters add."""
    return _split(model, lambda name, own: name in own)


def _split(model: nn.Module, choose: Callable[[str, set[str]], bool]) -> dict[str, Tensor]:
    bases = {f"{name}.{part}" for name, _ in carriers(model) for part in ("weight", "scale")}
    prefixes = tuple(f"{name}." for name, _ in carriers(model))
    state = model.state_dict()
    own = {name for name in state if name.startswith(prefixes) and name not in bases} if prefixes else set()
    return {name: tensor for name, tensor in state.items() if choose(name, own)}


def twin(model: DeepseekV4ForCausalLM) -> DeepseekV4ForCausalLM:
    """A model whose parameters and buffers are those of another; an adapter that is put on one is not on the other."""
    # what is already in deepcopy's memo is taken, not copied
    return deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def add_adapters(model: nn.Module, config: LoraConfig, mtp: bool, seed: int) -> list[str]:
    """Freeze a model and put fresh adapters on what `config.targets` name; returns those names.

    Args:
        model: with its weights.
        config: the section of a recipe.
        mtp: whether the MTP block is trained; if not, it gets no adapters.
        seed: decides A; B starts at zero.

    Raises:
        ValueError: a target matches nothing, or cannot be adapted so.
    """
    names = targeted(model, config, mtp)
    adapt(model, names, shape_of(config))
    if not next(model.parameters()).is_meta:
        start(model, seed)
    return names


def adapting(
    architecture: DeepseekV4Config, config: LoraConfig, mtp: bool, kind_of: KindOf | None
) -> Callable[[TransformerPart], None]:
    """What freezes any part of a model on the meta device and puts adapters on what of the targets is in it.

    Args:
        architecture: of the whole model, in which the targets must mean something.
        config: the section of a recipe.
        mtp: as in `add_adapters`.
        kind_of: how frozen weights are kept, by released name; None for decoded ones.

    Raises:
        ValueError: a target matches nothing.
    """
    names = targeted(DeepseekV4ForCausalLM(architecture, "meta"), config, mtp)

    def prepare(part: TransformerPart) -> None:
        if kind_of is not None:
            quantize_modules(part, kind_of)
        here = set(adaptable(part))
        adapt(part, [name for name in names if name in here], shape_of(config))

    return prepare


def shape_of(config: LoraConfig) -> AdapterShape:
    """What a recipe's adapters look like."""
    return AdapterShape(
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        rslora=config.rslora,
        dora=config.dora,
        shared_a=config.shared_a,
        merge_into=config.merge_into,
    )
