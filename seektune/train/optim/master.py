"""The base of our optimizers: fp32 state and arithmetic for parameters of any dtype, which may be sharded."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from seektune.parallel.placement import local

Part = int | EllipsisType
"""Index of a part of a local tensor, or `...` for all of it."""


class MasterOptimizer(torch.optim.Optimizer):
    """An optimizer that keeps small updates of bf16 weights.

    A bf16 parameter has 8 bits of precision, so an update below 1/256 of the weight would vanish in it. With the group
    setting `master="fp32"` there is an fp32 copy that the parameter is rounded from; `"bf16_stochastic"` rounds up or
    down at random, right on average; `seed` is that of the rounding.
    """

    @abstractmethod
    def zeros(self, parameter: Tensor) -> dict[str, Tensor]:
        """The moments of a parameter before its first update, by name; of a sharded one, for the local shard."""

    def begin(self, parameter: Tensor) -> None:
        """Create the state of a parameter before its first update."""
        state = self.state[parameter]
        weight = local(parameter).detach()
        state["step"] = torch.tensor(0.0)
        state.update(self.zeros(parameter))
        if parameter.dtype != torch.float32 and self.defaults["master"] == "fp32":
            state["master"] = weight.float()

    def counted(self, parameter: Tensor) -> dict[str, Any]:
        """The state of a parameter for its next update, whose step count is one higher."""
        if not self.state[parameter]:
            self.begin(parameter)
        state: dict[str, Any] = self.state[parameter]
        state["step"] += 1
        return state

    @contextmanager
    def fp32_weight(
        self, parameter: Tensor, group: dict[str, Any], index: tuple[int, ...], part: Part = ...
    ) -> Iterator[Tensor]:
        """The local weight, or a part of it, in fp32, to be changed in place; what it is then becomes the parameter.

        `index` seeds the stochastic rounding of this part, so that no two parts round alike.
        """
        state = self.state[parameter]
        weight = local(parameter)[part]
        if weight.dtype == torch.float32:
            yield weight
        elif group["master"] == "fp32":
            master = state["master"][part]
            yield master
            weight.copy_(master)
        else:
            value = weight.float()
            yield value
            weight.copy_(round_stochastically(value, _generator(weight, group["seed"], int(state["step"]), index)))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a `state_dict()`; the fp32 states of bf16 parameters stay fp32, which torch would round."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                place = value.device if key == "step" else parameter.device
                self.state[parameter][key] = value.to(place, copy=True)


def fp32_zeros(parameter: Tensor) -> Tensor:
    """fp32 zeros in the shape of the local shard."""
    return torch.zeros_like(local(parameter).detach(), dtype=torch.float32)


def _generator(parameter: Tensor, seed: int, step: int, index: tuple[int, ...]) -> torch.Generator:
    """A new generator per parameter and step: it needs no state, and a resumed run draws the same numbers."""
    mixed = hash((seed, step, *index)) % 2**63
    return torch.Generator(parameter.device).manual_seed(mixed)


def round_stochastically(value: Tensor, generator: torch.Generator) -> Tensor:
    """fp32 to bf16 by stochastic rounding, which is unbiased."""
    noise = torch.randint(2**16, value.shape, dtype=torch.int32, device=value.device, generator=generator)
    # bf16 is the upper half of fp32: the lower half's share of 2^16 is the chance of a carry into the upper
    bits = (value.view(torch.int32) + noise) & -(2**16)
    return bits.view(torch.float32).to(torch.bfloat16)
