"""Exact parameter counts from the config alone."""

from dataclasses import dataclass
from math import prod

import torch

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import DeepseekV4Config


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of weights; the integer tables of hash gates are not parameters and are counted separately."""

    main: int
    mtp: int
    active: int
    """Weights used per token: the main model without unchosen experts and without the embedding table."""
    table_entries: int


def count_parameters(config: DeepseekV4Config) -> ParameterCount:
    """Count on the meta device, without allocating weights; the gates' balancing biases are included.

    `mtp` counts the MTP block or the DSpark stages.
    """
    shapes = _weights(config)
    main = sum(prod(shape) for name, shape in shapes.items() if not name.startswith("mtp."))
    routed = sum(prod(shape) for name, shape in shapes.items() if ".experts.w" in name and not name.startswith("mtp."))
    idle = routed // config.n_routed_experts * (config.n_routed_experts - config.num_experts_per_tok)
    return ParameterCount(
        main=main,
        mtp=sum(map(prod, shapes.values())) - main,
        active=main - idle - config.vocab_size * config.hidden_size,
        table_entries=config.num_hash_layers * config.vocab_size * config.num_experts_per_tok,
    )


def _weights(config: DeepseekV4Config) -> dict[str, torch.Size]:
    state = DeepseekV4ForCausalLM(config, device="meta", drafter=True).state_dict()
    return {name: tensor.shape for name, tensor in state.items() if tensor.is_floating_point()}
