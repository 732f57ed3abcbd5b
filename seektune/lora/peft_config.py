"""What adapter_config.json says: rank and scaling of each target, by PEFT's own rules, and what is not read of it."""

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
"""Keys by which an adapter is more than low-rank changes of weights."""
LARGEST = torch.finfo(torch.float32).max
_OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to start that also change the base weights: the adapter is one of the changed base."""


@dataclass(frozen=True)
class PeftConfig:
    """The part on which the meaning of tensors depends."""

    rank: int
    alpha: float
    ranks: Mapping[str, Any]
    """Of targets with another rank, by a pattern of their names."""
    alphas: Mapping[str, Any]
    rslora: bool
    dora: bool
    parameters: tuple[str, ...]
    """Targets that are no modules; a name or how it ends."""

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "PeftConfig":
        """From the file's keys; those that are missing are PEFT's defaults.

        Raises:
            ValueError: a value is none of its key's, or the adapter holds more than is read.
        """
        unread = next((key for key in UNREAD if config.get(key)), None) or ("bias" if _trains_bias(config) else None)
        if unread is not None:
            raise ValueError(f"it holds more than low-rank changes of weights ({unread}), which is not read")
        start = config.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_OTHER_BASE):
            raise ValueError(
                f"it changes base weights too (init_lora_weights {start}); have PEFT save it as plain LoRA"
            )
        parameters = config.get("target_parameters") or []
        if not isinstance(parameters, list) or not all(isinstance(each, str) for each in parameters):
            raise ValueError("its target_parameters is no list of names")
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
        """R of a module or parameter."""
        found = _of(self.ranks, target, self.rank)
        return _rank(found, f"rank_pattern of {target}")

    def scaling_of(self, target: str) -> float:
        """What B A is multiplied by there."""
        alpha = _alpha(_of(self.alphas, target, self.alpha), f"alpha_pattern of {target}")
        rank = self.rank_of(target)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def targets(self, parameter: str) -> bool:
        """Whether a parameter is one of the targets."""
        return any(parameter == each or parameter.endswith(f".{each}") for each in self.parameters)


def _trains_bias(config: Mapping[str, Any]) -> bool:
    return config.get("bias", "none") != "none"


def _of(patterns: Mapping[str, Any], target: str, otherwise: Any) -> Any:
    """The value of the first pattern that is the target's name or how it ends, as PEFT's `get_pattern_key` looks."""
    try:
        return next((patterns[each] for each in patterns if re.match(rf"(.*\.)?({each})$", target)), otherwise)
    except re.error as error:
        raise ValueError(f"its patterns of rank or alpha hold {error.pattern!r}, which is none: {error}") from None


def _pattern(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key) or {}
    if not isinstance(found, dict):
        raise ValueError(f"its {key} is no object")
    return found


def _rank(found: object, what: str) -> int:
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"its {what} is {found!r}, not a number from 1")
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
"""From the released names to those of transformers; each is undone by reading it backwards."""


def transformers_name(released: str) -> str:
    """What transformers calls a module; routed experts aside, which it keeps in two parameters of one module."""
    for pattern, theirs in _RULES:
        released = re.sub(pattern, theirs, released)
    return released


def released_name(theirs: str) -> str:
    """The inverse."""
    for pattern, text in reversed(_RULES):
        ours = re.sub(r"[\^$]|\\(?=\.)", "", pattern)
        anchored = ("^" if pattern.startswith("^") else "") + re.escape(text) + ("$" if pattern.endswith("$") else "")
        theirs = re.sub(anchored, ours, theirs)
    return theirs
