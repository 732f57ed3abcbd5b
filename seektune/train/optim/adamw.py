"""AdamW for fp32 and bf16 parameters that keeps small updates of bf16 weights."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from seektune.parallel.placement import local
from seektune.train.optim.master import MasterOptimizer, fp32_zeros


class AdamW(MasterOptimizer):
    """AdamW with decoupled decay (Loshchilov & Hutter), equal to torch's on fp32 parameters.

    Moments and arithmetic are fp32; all operations are elementwise, in torch's fused kernel.
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

    def zeros(self, parameter: Tensor) -> dict[str, Tensor]:
        """The first and the second moment, fp32."""
        return {"exp_avg": fp32_zeros(parameter), "exp_avg_sq": fp32_zeros(parameter)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "closures are not supported"
        for group_index, group in enumerate(self.param_groups):
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    self.update(parameter, group, (group_index, index))

    def update(self, parameter: Tensor, group: dict[str, Any], index: tuple[int, int]) -> None:
        """One update of a parameter that has a gradient; `index` is its place in the groups."""
        state = self.counted(parameter)
        gradient = local(parameter.grad).float()  # type: ignore[arg-type]
        with self.fp32_weight(parameter, group, index) as weight:
            torch._fused_adamw_(
                [weight],
                [gradient],
                [state["exp_avg"]],
                [state["exp_avg_sq"]],
                [],
                [state["step"].to(weight.device)],
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
