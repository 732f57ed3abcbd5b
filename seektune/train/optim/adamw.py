"""AdamW for fp32 and bf16 parameters that keeps small updates of bf16 weights."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from seektune.parallel.placement import local


@dataclass(frozen=True)
class _Numbers:
    """Hyperparameters of one step of one group."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    step: int


class AdamW(torch.optim.Optimizer):
    """AdamW with decoupled decay (Loshchilov & Hutter), equal to torch's on fp32 parameters.

    Moments and arithmetic are fp32. A bf16 parameter has 8 bits of precision, so an update below 1/256 of the weight
    would vanish in it: `master="fp32"` keeps an fp32 copy that the parameter is rounded from; `"bf16_stochastic"`
    rounds up or down at random, right on average. All operations are elementwise.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        master: Literal["fp32", "bf16_stochastic"] = "fp32",
        seed: int = 0,
    ):
        numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, {**numbers, "master": master, "seed": seed})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "closures are not supported"
        for group_index, group in enumerate(self.param_groups):
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    self._update(parameter, group, (group_index, index))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a `state_dict()`; the fp32 states of bf16 parameters stay fp32, which torch would round."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                place = value.device if key == "step" else parameter.device
                self.state[parameter][key] = value.to(place, copy=True)

    def _update(self, parameter: Tensor, group: dict[str, Any], index: tuple[int, int]) -> None:
        state = self.state[parameter]
        if not state:
            self.begin(parameter)
        state["step"] += 1
        numbers = _Numbers(group["lr"], group["betas"], group["eps"], group["weight_decay"], int(state["step"]))
        gradient = local(parameter.grad).float()  # type: ignore[arg-type]
        weight = local(parameter)
        if parameter.dtype == torch.float32:
            _adamw(weight, gradient, state, numbers)
        elif group["master"] == "fp32":
            _adamw(state["master"], gradient, state, numbers)
            weight.copy_(state["master"])
        else:
            value = weight.float()
            _adamw(value, gradient, state, numbers)
            weight.copy_(round_stochastically(value, _generator(weight, group["seed"], numbers.step, index)))

    def begin(self, parameter: Tensor) -> None:
        """Create the state of a parameter before its first update; of a sharded one, for the local shard."""
        state = self.state[parameter]
        weight = local(parameter).detach()
        state["step"] = torch.tensor(0.0)
        state["exp_avg"] = torch.zeros_like(weight, dtype=torch.float32)
        state["exp_avg_sq"] = torch.zeros_like(weight, dtype=torch.float32)
        if parameter.dtype != torch.float32 and self.defaults["master"] == "fp32":
            state["master"] = weight.float()


def _adamw(weight: Tensor, gradient: Tensor, state: dict[str, Tensor], numbers: _Numbers) -> None:
    """One update in place, in one pass; all tensors fp32 and of one shape."""
    torch._fused_adamw_(
        [weight],
        [gradient],
        [state["exp_avg"]],
        [state["exp_avg_sq"]],
        [],
        [state["step"].to(weight.device)],
        lr=numbers.lr,
        beta1=numbers.betas[0],
        beta2=numbers.betas[1],
        weight_decay=numbers.weight_decay,
        eps=numbers.eps,
        amsgrad=False,
        maximize=False,
    )


def _generator(parameter: Tensor, seed: int, step: int, index: tuple[int, int]) -> torch.Generator:
    """A new generator per parameter and step: it needs no state, and a resumed run draws the same numbers."""
    mixed = hash((seed, step, *index)) % 2**63
    return torch.Generator(parameter.device).manual_seed(mixed)


def round_stochastically(value: Tensor, generator: torch.Generator) -> Tensor:
    """fp32 to bf16 by stochastic rounding, which is unbiased."""
    noise = torch.randint(2**16, value.shape, dtype=torch.int32, device=value.device, generator=generator)
    # bf16 is the upper half of fp32: the lower half's share of 2^16 is the chance of a carry into the upper
    bits = (value.view(torch.int32) + noise) & -(2**16)
    return bits.view(torch.float32).to(torch.bfloat16)
