"""Read PEFT's adapter_config.json: rank and scaling of each target by PEFT's rules; unsupported options raise."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

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
LARGEST = torch.finfo(torch.float32).max
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
        unread = next((key for key in UNREAD if config.get(key)), None) or ("bias" if _trains_bias(config) else None)
        if unread is not None:
            raise ValueError(f"it holds more than low-rank changes of weights ({unread}), which is not supported")
        start = config.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_OTHER_BASE):
            raise ValueError(
                f"it also changes base weights (init_lora_weights {start}); save it as plain LoRA with PEFT"
            )
        parameters = config.get("target_parameters") or []
        if not isinstance(parameters, list) or not all(isinstance(each, str) for each in parameters):
            raise ValueError("its target_parameters is not a list of names")
        return cls(
            rank=_rank(config.get("r"), "r"),
            alpha=_alpha(config.get("lora_alpha"), "lora_alpha"),
            ranks=_pattern(config, "rank_pattern"),
            alphas=_pattern(config, "alpha_pattern"),
            rslora=bool(config.get("use_rslora")),
            dora=bool(config.get("use_dora")),
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
        return any(parameter == each or parameter.endswith(f".{each}") for each in self.parameters)


def _trains_bias(config: Mapping[str, Any]) -> bool:
    return config.get("bias", "none") != "none"


def _of(patterns: Mapping[str, Any], target: str, otherwise: Any) -> Any:
    """The value of the first pattern that matches the target's name or a suffix, as in PEFT's `get_pattern_key`."""
    try:
        return next((patterns[each] for each in patterns if re.match(rf"(.*\.)?({each})$", target)), otherwise)
    except re.error as error:
        raise ValueError(f"its patterns of rank or alpha hold {error.pattern!r}, which is invalid: {error}") from None


def _pattern(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise ValueError(f"its {key} is not an object")
    return found


def _rank(found: object, what: str) -> int:
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"its {what} is {found!r}, not a whole number of 1 or more")
    return found


def _alpha(found: object, what: str) -> float:
    if not isinstance(found, int | float) or isinstance(found, bool) or not abs(found) <= LARGEST:
        raise ValueError(f"its {what} is {found!r}, not a finite number")
    return float(found)


_RULES = (
    (r"^embed$", "model.embed_tokens"),
    (r"^head$", "lm_head"),
    (r"^layers\.", "model.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ffn\.", ".mlp."),
    (r"\.wq_a$", ".q_a_proj"),
    (r"\.wq_b$", ".q_b_proj"),
    (r"\.wkv$", ".kv_proj"),
    (r"\.wgate$", ".gate_proj"),
    (r"\.wo_a$", ".o_a_proj"),
    (r"\.wo_b$", ".o_b_proj"),
    (r"\.shared_experts\.w1$", ".shared_experts.gate_proj"),
    (r"\.shared_experts\.w2$", ".shared_experts.down_proj"),
    (r"\.shared_experts\.w3$", ".shared_experts.up_proj"),
)
"""From released names to those of transformers; `released_name` applies the rules in reverse."""


def transformers_name(released: str) -> str:
    """transformers' name of a module, except routed experts, which it stores as two parameters of one module."""
    for pattern, theirs in _RULES:
        released = re.sub(pattern, theirs, released)
    return released


def released_name(theirs: str) -> str:
    """The inverse of `transformers_name`."""
    for pattern, text in reversed(_RULES):
        ours = re.sub(r"[\^$]|\\(?=\.)", "", pattern)
        anchored = ("^" if pattern.startswith("^") else "") + re.escape(text) + ("$" if pattern.endswith("$") else "")
        theirs = re.sub(anchored, ours, theirs)
    return theirs
