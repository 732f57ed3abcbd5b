"""What a run's checkpoint holds: every tensor that a step changes, by name, and the random state."""

from collections.abc import Mapping

import torch
from torch import Tensor

from seektune.model.adapters import adapter_state, is_adapted
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.train.optimizer import AdamW

MODEL, OPTIMIZER, RANDOM = "model.", "optimizer.", "random."


def run_tensors(model: DeepseekV4ForCausalLM, optimizer: AdamW) -> dict[str, Tensor]:
    """Weights, buffers and optimizer state by name, and torch's random state of each device.

    Of a model with adapters only those: its base is where it was read from.
    """
    state = adapter_state(model) if is_adapted(model) else model.state_dict()
    tensors = {MODEL + name: tensor for name, tensor in state.items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{OPTIMIZER}{name}:{key}"] = value
    return tensors | random_states()


def begin_as_saved(model: DeepseekV4ForCausalLM, optimizer: AdamW, names: set[str]) -> None:
    """Give every parameter that had optimizer state when it was saved an empty one, to be filled."""
    for name, parameter in model.named_parameters():
        if f"{OPTIMIZER}{name}:step" in names:
            optimizer.begin(parameter)


def random_states() -> dict[str, Tensor]:
    """The state of torch's generators, of the CPU and of each GPU, uint8."""
    states = {f"{RANDOM}cpu": torch.get_rng_state()}
    return states | {f"{RANDOM}cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}


def set_random_states(tensors: Mapping[str, Tensor]) -> None:
    """Restore what `random_states` gave."""
    torch.set_rng_state(tensors[f"{RANDOM}cpu"])
    count = sum(name.startswith(f"{RANDOM}cuda") for name in tensors)
    torch.cuda.set_rng_state_all([tensors[f"{RANDOM}cuda{i}"] for i in range(count)])
