"""Adapters on a model as the section `lora` of a recipe asks for them, and a model that shares another's weights."""

from collections.abc import Callable
from copy import deepcopy
from itertools import chain
from typing import TypeVar

from torch import nn

from seektune.lora.config import LoraConfig
from seektune.lora.initialize import init_adapters
from seektune.lora.inject import AdapterShape, adapt
from seektune.lora.targets import adaptable, targeted
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.quantized import KindOf, quantize_modules
from seektune.model.transformer import TransformerPart

Part = TypeVar("Part", bound=TransformerPart)


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
        init_adapters(model, seed)
    return names


def adapter_injector(
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


def share_weights(model: Part) -> Part:
    """A model that shares the parameters and buffers of another; adapters added to one are not on the other."""
    # what is already in deepcopy's memo is taken, not copied
    return deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})
