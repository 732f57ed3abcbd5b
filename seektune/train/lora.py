"""Adapters for training: which of a model's weights get one."""

from collections.abc import Callable

from torch import nn

from seektune.model.adapters import AdapterShape, adapt, adaptable, matching, start
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config
from seektune.model.frozen import KindOf, pack
from seektune.model.part import ModelPart
from seektune.train.config import LoraConfig


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
) -> Callable[[ModelPart], None]:
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

    def prepare(part: ModelPart) -> None:
        if kind_of is not None:
            pack(part, kind_of)
        here = set(adaptable(part))
        adapt(part, [name for name in names if name in here], shape_of(config))

    return prepare


def targeted(model: nn.Module, config: LoraConfig, mtp: bool) -> list[str]:
    """Names of the modules that get an adapter.

    Raises:
        ValueError: a target matches nothing, or all that it matches is the MTP block, which is not trained.
    """
    try:
        names = matching(model, config.targets)
    except ValueError as error:
        raise ValueError(f"lora.targets: {error}") from None
    kept = [name for name in names if mtp or not name.startswith("mtp.")]
    if not kept:
        raise ValueError("lora.targets: only the MTP block is meant, which loss.mtp_weight 0 leaves as it is")
    return kept


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
