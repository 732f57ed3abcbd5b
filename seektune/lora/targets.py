"""The modules of a model that can have an adapter, and those that a recipe's `lora.targets` select.

Targets are released names. Relative to a block, `attn.wq_b` selects that layer in every block, but never
`attn.indexer.wq_b`; `attn` selects all linear layers directly in it; `layers.3.attn.wq_b` selects one. The gate and the
indexer are never adapted: routing stays as released, and a top-k has no gradient.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches

from torch import nn

from seektune.lora.config import LoraConfig
from seektune.lora.layers import (
    AdaptedEmbedding,
)
from seektune.model.dspark import DSparkStage
from seektune.model.moe import Experts
from seektune.model.quantized import (
    MATRICES,
    QuantizedExperts,
    QuantizedLinear,
)


def targeted(model: nn.Module, config: LoraConfig, mtp: bool) -> list[str]:
    """Names of the modules that get an adapter.

    Raises:
        ValueError: a target matches nothing, or the targets match only the MTP block, which is not trained.
    """
    try:
        names = matching(model, config.targets)
    except ValueError as error:
        raise ValueError(f"lora.targets: {error}") from None
    kept = [name for name in names if mtp or not name.startswith("mtp.")]
    if not kept:
        raise ValueError("lora.targets selects only the MTP block, which is not trained with loss.mtp_weight 0")
    return kept


_BLOCK = re.compile(r"(layers|mtp)\.\d+\.")


def adaptable(model: nn.Module) -> list[str]:
    """Released names of all modules that can have an adapter: none of the indexer's, and none of DSpark stages."""
    names = []
    stages = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, DSparkStage))
    for name, module in model.named_modules():
        if ".indexer" in name or name.startswith(stages):
            continue
        if isinstance(module, nn.Linear | QuantizedLinear | nn.Embedding | AdaptedEmbedding):
            names.append(name)
        elif isinstance(module, Experts | QuantizedExperts):
            names += [f"{name}.{matrix}" for matrix in MATRICES]
    return names


def matching(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """The adaptable names that the targets select.

    Raises:
        ValueError: a target matches nothing; the message suggests the closest name.
    """
    names = adaptable(model)
    found = set()
    for target in targets:
        meant = {name for name in names if target in _aliases(name)}
        if not meant:
            raise ValueError(_no_match_message(target, names))
        found |= meant
    return [name for name in names if name in found]


def _aliases(name: str) -> set[str]:
    within = _BLOCK.sub("", name, count=1)
    return {form for form in (name, within, name.rpartition(".")[0], within.rpartition(".")[0]) if form}


def _no_match_message(target: str, names: list[str]) -> str:
    if "indexer" in target:
        return f"{target} cannot be adapted: no gradient reaches the indexer through its top-k choice"
    if target.endswith("gate"):
        return f"{target} cannot be adapted: the router stays as released"
    offered = sorted({form for name in names for form in _aliases(name) if not _BLOCK.match(form + ".")})
    near = get_close_matches(target, offered, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{target} matches nothing in this model; {hint}What can be adapted: {', '.join(offered)}"
