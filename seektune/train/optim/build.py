"""Builds the optimizer of a recipe: groups of parameters with equal settings, and the class of its name."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn

from seektune.io.patterns import matched
from seektune.model.config import DeepseekV4Config
from seektune.parallel.matrix_exchange import stack_of
from seektune.parallel.mesh import Mesh
from seektune.train.optim.adamw import AdamW
from seektune.train.optim.adamw_8bit import BLOCK, AdamW8bit, check_torchao, is_quantized
from seektune.train.optim.config import AdamWConfig, MuonConfig, OptimizerConfig, ParameterGroupConfig
from seektune.train.optim.master import MasterOptimizer
from seektune.train.optim.muon import MATRICES, Muon
from seektune.train.optim.muon_table import muon_rule
from seektune.train.optim.newton_schulz import iteration_flops

UNDECAYED = ("*norm", "hc_*", "attn_sink", "ape", "bias")
"""Parts of parameter names that are exempt from AdamW's weight decay; so is everything with fewer than two dims."""
Settings: TypeAlias = dict[str, Any]
"""Of a parameter, in its group."""


class Trainable(Protocol):
    """A module or a `ParallelModel`."""

    config: DeepseekV4Config

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by name."""
        ...


@dataclass(frozen=True)
class OptimizerKind:
    """How an optimizer is made."""

    settings: Callable[[str, Tensor, Any, DeepseekV4Config], Settings]
    """Settings of a parameter by its name, itself, the section and the model's config."""
    make: Callable[[list[Settings], Any, int, Mesh], MasterOptimizer]
    """The optimizer of groups, the section, the seed of stochastic rounding and the mesh of the parameters."""
    moment_bytes: Callable[[Tensor, Settings], float]
    """Bytes of moments per element of a parameter with these settings."""
    check: Callable[[], None] = lambda: None
    """Raises a ValueError if a library is missing."""


def _adamw_settings(name: str, parameter: Tensor, config: OptimizerConfig, model: DeepseekV4Config) -> Settings:
    return {"weight_decay": config.weight_decay if is_decayed(name, parameter) else 0.0}


def _muon_settings(name: str, parameter: Tensor, config: OptimizerConfig, model: DeepseekV4Config) -> Settings:
    matrices = {"none": 0, "one": 1, "experts": 1, "groups": model.o_groups}[muon_rule(name).matrices]
    decay = {"weight_decay": config.weight_decay} if matrices else _adamw_settings(name, parameter, config, model)
    return {**decay, MATRICES: matrices}


def _adamw(groups: list[Settings], config: AdamWConfig, seed: int, mesh: Mesh) -> AdamW:
    return AdamW(groups, config.lr, config.betas, config.eps, config.weight_decay, config.master, seed)


def _muon(groups: list[Settings], config: MuonConfig, seed: int, mesh: Mesh) -> Muon:
    numbers = config.lr, config.momentum, config.betas, config.eps, config.weight_decay
    return Muon(groups, *numbers, config.master, seed, mesh.shards_of)


def _adamw_8bit(groups: list[Settings], config: OptimizerConfig, seed: int, mesh: Mesh) -> AdamW8bit:
    return AdamW8bit(groups, config.lr, config.betas, config.eps, config.weight_decay, config.master, seed)


KINDS = {
    "adamw": OptimizerKind(_adamw_settings, _adamw, lambda parameter, settings: 8),
    "muon": OptimizerKind(_muon_settings, _muon, lambda parameter, settings: 4 if settings[MATRICES] else 8),
    "adamw_8bit": OptimizerKind(
        _adamw_settings,
        _adamw_8bit,
        lambda parameter, settings: 2 * (1 + 4 / BLOCK) if is_quantized(parameter) else 8,
        check_torchao,
    ),
}
"""By `optimizer.name`."""


def build_optimizer(model: Trainable, config: OptimizerConfig, seed: int, mesh: Mesh | None = None) -> MasterOptimizer:
    """The optimizer of a recipe; `seed` is that of stochastic rounding, `mesh` that of a model on several processes.

    Raises:
        ValueError: nothing in the model is trainable.
    """
    groups = parameter_groups(model, config)
    if not groups:
        raise ValueError("the model has no trainable parameter")
    return KINDS[config.name].make(groups, config, seed, Mesh.alone() if mesh is None else mesh)


def parameter_groups(model: Trainable, config: OptimizerConfig) -> list[Settings]:
    """The trainable parameters in groups of equal settings, decayed ones first.

    `lr_scale` is what the scheduled rate is multiplied by.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = named_groups(trainable, config)
    groups: dict[tuple[tuple[str, Any], ...], list[Tensor]] = {}
    for name, parameter in trainable.items():
        settings = KINDS[config.name].settings(name, parameter, config, model.config)
        settings |= _overrides(own[name], config) if name in own else {"lr_scale": 1.0}
        groups.setdefault(tuple(settings.items()), []).append(parameter)
    found = [{"params": parameters, **dict(settings)} for settings, parameters in groups.items()]
    return sorted(found, key=lambda group: group["weight_decay"] == 0)


def named_groups(names: Iterable[str], config: OptimizerConfig) -> dict[str, ParameterGroupConfig]:
    """The group of `optimizer.groups` that each name belongs to, if one does: the first whose pattern it has.

    Raises:
        ValueError: a pattern is not a regular expression.
    """
    found: dict[str, ParameterGroupConfig] = {}
    every = list(names)
    for group in config.groups:
        found = dict.fromkeys(_matched(every, group.pattern), group) | found
    return found


def check_library(config: OptimizerConfig) -> None:
    """Check that the optimizer can be made here.

    Raises:
        ValueError: a library is missing.
    """
    KINDS[config.name].check()


def check_groups(names: Iterable[str], config: OptimizerConfig) -> None:
    """Check that each group of the optimizer has a trainable parameter of the whole model; `names` are all of them.

    Raises:
        ValueError: a pattern matches none, only some that an earlier group has, or is not a regular expression.
    """
    known = sorted(names)
    used = {id(group) for group in named_groups(known, config).values()}
    for number, group in enumerate(config.groups):
        if id(group) not in used:
            raise ValueError(
                f"optimizer.groups.{number}.pattern {group.pattern} matches no trainable parameter that no earlier "
                f"group has; names are such as {', '.join(known[:: max(1, len(known) // 4)][:5])}"
            )


@dataclass(frozen=True)
class PlannedState:
    """What the optimizer needs for a parameter, as plans count it."""

    moment_bytes: float
    """Bytes of moments per element."""
    matrix_flops: int
    """Operations of matrix products in a step, for the whole parameter."""


def planned_state(name: str, parameter: Tensor, config: OptimizerConfig, model: DeepseekV4Config) -> PlannedState:
    """What a trained parameter of the whole model needs."""
    kind = KINDS[config.name]
    settings = kind.settings(name, parameter, config, model)
    moment_bytes = kind.moment_bytes(parameter, settings)
    if not settings.get(MATRICES):
        return PlannedState(moment_bytes, 0)
    stack = stack_of(parameter, settings[MATRICES])
    return PlannedState(moment_bytes, stack.count * iteration_flops(stack.rows, stack.columns))


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether AdamW's weight decay applies: to matrices, except those listed by name."""
    exempt = any(fnmatchcase(part, pattern) for part in name.split(".") for pattern in UNDECAYED)
    return parameter.dim() >= 2 and not exempt


def _overrides(group: ParameterGroupConfig, config: OptimizerConfig) -> Settings:
    decay = {} if group.weight_decay is None else {"weight_decay": group.weight_decay}
    return {**decay, "lr_scale": 1.0 if group.lr is None else group.lr / config.lr}


def _matched(names: list[str], pattern: str) -> list[str]:
    try:
        return matched(names, pattern)
    except ValueError as error:
        raise ValueError(f"optimizer.groups: pattern {pattern}: {error}") from None
