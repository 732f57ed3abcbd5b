"""Builds the optimizer of a recipe, and decides which parameters have weight decay."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, Protocol

from torch import Tensor, nn

from seektune.train.config import OptimizerConfig
from seektune.train.optim.adamw import AdamW

UNDECAYED = ("*norm", "hc_*", "attn_sink", "ape", "bias")
"""Parts of parameter names that are exempt from weight decay; so is everything with fewer than two dims."""


class Trainable(Protocol):
    """A module or a `ParallelModel`."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by name."""
        ...


def parameter_groups(model: Trainable, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The trainable parameters in two groups, decayed and not."""
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trainable if is_decayed(name, parameter)]
    others = [parameter for name, parameter in trainable if not is_decayed(name, parameter)]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices, except those listed by name."""
    exempt = any(fnmatchcase(part, pattern) for part in name.split(".") for pattern in UNDECAYED)
    return parameter.dim() >= 2 and not exempt


def build_optimizer(model: Trainable, config: OptimizerConfig, seed: int) -> "AdamW":
    """The optimizer of a recipe; `seed` is that of stochastic rounding.

    Raises:
        ValueError: nothing in the model is trainable.
    """
    groups = parameter_groups(model, config)
    if not groups:
        raise ValueError("the model has no trainable parameter")
    return AdamW(groups, config.lr, config.betas, config.eps, config.weight_decay, config.master, seed)
