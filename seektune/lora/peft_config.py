"""Read PEFT's adapter_config.json: rank and scaling of each target by PEFT's rules; unsupported options raise."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from seektune.io.patterns import matched

UNREAD = (
    "modules_to_save",
    "trainable_token_indices",
    "layer_replication",
    "lora_bias",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)
"""Keys of adapters that are more than low-rank changes of weights."""
HARMLESS = (
    "corda_config",
    "eva_config",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "runtime_config",
    "use_dora",
    "use_rslora",
    "velora_config",
)
"""Keys that `_OPTION` matches and that are read here, or do not change what the tensors mean."""
_OPTION = re.compile(r"use_\w+|lora_\w+|\w+_config")
"""How PEFT names options of which a newer one may change what the tensors mean."""
LARGEST = torch.finfo(torch.float32).max
MOST_PATTERNS = 4096
"""Of ranks or alphas; an adapter of Pro has 800 modules."""
MOST_EXPRESSIONS = 256
"""Of the patterns, those that are more than names: each is compiled for each module."""
_PLAIN = re.compile(r"\^?(?:[\w.]|\\\.)*\$?")
"""A pattern that cannot backtrack: a name, in which a dot may be escaped or stand for any character."""
_OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initializations that also change the base weights, so that the adapter belongs to the changed base."""


@dataclass(frozen=True)
class PeftConfig:
    """The options that determine how tensors are interpreted."""

    rank: int
    alpha: float
    ranks: Mapping[str, Any]
    """Ranks of targets with another rank, by name pattern."""
    alphas: Mapping[str, Any]
    rslora: bool
    dora: bool
    parameters: tuple[str, ...]
    """Targets that are parameters, not modules; a name or a suffix of it."""

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "PeftConfig":
        """Read the file's keys; missing ones have PEFT's defaults.

        Raises:
            ValueError: a value is invalid, or the adapter uses an unsupported option.
        """
        known = {*HARMLESS, *UNREAD}
        unread = next((key for key in UNREAD if config.get(key)), None) or ("bias" if _trains_bias(config) else None)
        if unread is not None:
            raise ValueError(f"it holds more than low-rank changes of weights ({unread}), which is not supported")
        if strange := sorted(key for key in config if _OPTION.fullmatch(key) and key not in known and config[key]):
            raise ValueError(
                f"its config has {strange[0]:.80}, which SeekTune does not know and which may change its meaning"
            )
        start = config.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_OTHER_BASE):
            raise ValueError(
                f"it also changes base weights (init_lora_weights {start!r:.40}); save it as plain LoRA with PEFT"
            )
        parameters = config.get("target_parameters") or []
        if not isinstance(parameters, list) or not all(isinstance(each, str) for each in parameters):
            raise ValueError("its target_parameters is not a list of names")
        return cls(
            rank=_rank(config.get("r"), "r"),
            alpha=_alpha(config.get("lora_alpha"), "lora_alpha"),
            ranks=_pattern(config, "rank_pattern"),
            alphas=_pattern(config, "alpha_pattern"),
            rslora=_flag(config, "use_rslora"),
            dora=_flag(config, "use_dora"),
            parameters=tuple(parameters),
        )

    def rank_of(self, target: str) -> int:
        """The rank of a module or parameter."""
        found = _of(self.ranks, target, self.rank)
        return _rank(found, f"rank_pattern of {target}")

    def scaling_of(self, target: str) -> float:
        """The factor of B A for a module or parameter."""
        alpha = _alpha(_of(self.alphas, target, self.alpha), f"alpha_pattern of {target}")
        rank = self.rank_of(target)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def targets(self, parameter: str) -> bool:
        """Whether a parameter is one of the targets."""
        return any(is_named(parameter, each) for each in self.parameters)


def is_named(name: str, target: str) -> bool:
    """Whether a target of PEFT's, a name or the end of one, names this module or parameter."""
    return name == target or name.endswith(f".{target}")


def _trains_bias(config: Mapping[str, Any]) -> bool:
    return config.get("bias", "none") != "none"


def _of(patterns: Mapping[str, Any], target: str, otherwise: Any) -> Any:
    """The value of the first pattern that matches the target's name or a suffix, as in PEFT's `get_pattern_key`."""
    return next((patterns[each] for each in patterns if _matches(each, target)), otherwise)


def _matches(pattern: str, target: str) -> bool:
    """Whether a pattern of others matches, in time that grows only with the lengths of both."""
    if _PLAIN.fullmatch(pattern):
        return _compiled(pattern).match(target) is not None
    try:
        return bool(matched([target], rf"^(.*\.)?({pattern})$"))
    except ValueError as error:
        raise ValueError(
            f"its patterns of rank or alpha hold {pattern[:80]!r}, which is invalid or too complicated: {error}"
        ) from None


@lru_cache(maxsize=MOST_PATTERNS)
def _compiled(pattern: str) -> re.Pattern[str]:
    # the cache of `re` is smaller than the patterns of an adapter that has one for each module
    return re.compile(rf"(.*\.)?({pattern})$")


def _flag(config: Mapping[str, Any], key: str) -> bool:
    found = config.get(key) or False
    if not isinstance(found, bool):
        raise ValueError(f"its {key} is {found!r:.40}, not true or false")
    return found


def _pattern(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise ValueError(f"its {key} is not an object")
    if len(found) > MOST_PATTERNS:
        raise ValueError(f"its {key} has {len(found):,} patterns; no model has more than {MOST_PATTERNS:,} modules")
    expressions = sum(_PLAIN.fullmatch(each) is None for each in found)
    if expressions > MOST_EXPRESSIONS:
        raise ValueError(
            f"its {key} has {expressions:,} regular expressions, of which at most {MOST_EXPRESSIONS} are read; "
            "name the modules instead"
        )
    return found


def _rank(found: object, what: str) -> int:
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"its {what} is {found!r:.40}, not a whole number of 1 or more")
    return found


def _alpha(found: object, what: str) -> float:
    if not isinstance(found, int | float) or isinstance(found, bool) or not abs(found) <= LARGEST:
        raise ValueError(f"its {what} is {found!r:.40}, not a finite number")
    return float(found)
