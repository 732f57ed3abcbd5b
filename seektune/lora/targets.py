"""Which modules of a model can carry an adapter, and which ones a recipe's `lora.targets` name.

Targets are names as the checkpoint has them. Within a block, `attn.wq_b` means that map in every layer and never
`attn.indexer.wq_b`; `attn` means all maps directly in it; `layers.3.attn.wq_b` one layer's. The gate and the indexer
are never adapted: routing stays the released one, and no gradient reaches a top-k choice.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches

from torch import nn

from seektune.lora.config import LoraConfig
from seektune.lora.layers import (
    AdaptedEmbedding,
)
from seektune.model.moe import Experts
from seektune.model.quantized import (
    MATRICES,
    QuantizedExperts,
    QuantizedLinear,
)


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


_BLOCK = re.compile(r"(layers|mtp)\.\d+\.")


def adaptable(model: nn.Module) -> list[str]:
    """Names of everything that can carry an adapter, as the checkpoint names it."""
    names = []
    for name, module in model.named_modules():
        if ".indexer" in name:
            continue
        if isinstance(module, nn.Linear | QuantizedLinear | nn.Embedding | AdaptedEmbedding):
            names.append(name)
        elif isinstance(module, Experts | QuantizedExperts):
            names += [f"{name}.{matrix}" for matrix in MATRICES]
    return names


def matching(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """The adaptable names that the targets mean.

    Raises:
        ValueError: a target means nothing here; the sentence offers the nearest name.
    """
    names = adaptable(model)
    found = set()
    for target in targets:
        meant = {name for name in names if target in _ways_to_say(name)}
        if not meant:
            raise ValueError(_nothing(target, names))
        found |= meant
    return [name for name in names if name in found]


def _ways_to_say(name: str) -> set[str]:
    within = _BLOCK.sub("", name, count=1)
    return {form for form in (name, within, name.rpartition(".")[0], within.rpartition(".")[0]) if form}


def _nothing(target: str, names: list[str]) -> str:
    if "indexer" in target:
        return f"{target} cannot be adapted: no gradient reaches the indexer through its top-k choice"
    if target.endswith("gate"):
        return f"{target} cannot be adapted: the router stays as released"
    offered = sorted({form for name in names for form in _ways_to_say(name) if not _BLOCK.match(form + ".")})
    near = get_close_matches(target, offered, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{target} matches nothing in this model; {hint}What can be adapted: {', '.join(offered)}"
