"""Read PEFT's adapter_config.json: rank and scaling of each target by PEFT's rules; unsupported options raise."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
"""Of the patterns, those that are more than names."""
_PLAIN = re.compile(r"\^?(?:[\w.]|\\\.)*\$?")
"""A pattern that cannot backtrack: a name, in which a dot may be escaped or stand for any character."""
_OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initializations that also change the base weights, so that the adapter belongs to the changed base."""


@dataclass(frozen=True)
class PeftConfig:
    """The options that determine how tensors are interpreted."""

    rank: int
    alpha: float
    ranks: "Patterns"
    """Ranks of targets with another rank."""
    alphas: "Patterns"
    rslora: bool
    dora: bool
    parameters: tuple[str, ...]
    """Targets that are parameters, not modules; a name or a suffix of it."""

    @classmethod
    def read(cls, config: Mapping[str, Any], targets: Sequence[str] = ()) -> "PeftConfig":
        """Read the file's keys; missing ones have PEFT's defaults.

        Args:
            config: the file's content.
            targets: names that will be asked for: patterns are matched against all of them at once.

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
            ranks=Patterns(_pattern(config, "rank_pattern"), targets),
            alphas=Patterns(_pattern(config, "alpha_pattern"), targets),
            rslora=_flag(config, "use_rslora"),
            dora=_flag(config, "use_dora"),
            parameters=tuple(parameters),
        )

    def rank_of(self, target: str) -> int:
        """The rank of a module or parameter."""
        found = self.ranks.of(target)
        return self.rank if found is None else _rank(found, f"rank_pattern of {target}")

    def scaling_of(self, target: str) -> float:
        """The factor of B A for a module or parameter."""
        found = self.alphas.of(target)
        alpha = self.alpha if found is None else _alpha(found, f"alpha_pattern of {target}")
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


class Patterns:
    """Values by pattern; of a target counts the first that matches its name or a suffix, as in PEFT's
    `get_pattern_key`."""

    def __init__(self, values: Mapping[str, Any], targets: Sequence[str] = ()):
        """Match each pattern once against all `targets`; others are matched when they are asked for."""
        self._values = values
        self._known = frozenset(targets)
        self._found = self._first(sorted(self._known))

    def of(self, target: str) -> Any:
        """The value; None if no pattern matches."""
        found = self._found if target in self._known else self._first([target])
        return found.get(target)

    def _first(self, targets: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for pattern, value in self._values.items():
            left = [target for target in targets if target not in found]
            if not left:
                break
            found |= dict.fromkeys(_matching(pattern, left), value)
        return found


def _matching(pattern: str, targets: Sequence[str]) -> list[str]:
    """Those that a pattern of others matches, in time that grows only with the lengths of all."""
    if _PLAIN.fullmatch(pattern):
        expression = re.compile(rf"(.*\.)?({pattern})$")
        return [target for target in targets if expression.match(target)]
    try:
        return matched(targets, rf"^(.*\.)?({pattern})$")
    except ValueError as error:
        raise ValueError(
            f"its patterns of rank or alpha hold {pattern[:80]!r}, which is invalid or too complicated: {error}"
        ) from None


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
