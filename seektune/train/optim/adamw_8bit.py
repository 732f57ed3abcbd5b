"""AdamW whose moments are kept in 8 bits, with torchao's arithmetic and code table (Dettmers et al., arXiv 2110.02861).

torchao, an extra, is imported where it is used. Its optimizer keeps blocks of a flattened shard, which another layout
could not read; here a block is part of a row, so that codes and scales are sharded as the parameter is.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from seektune.parallel.placement import local
from seektune.train.optim.adamw import AdamW

BLOCK = 128
"""Neighbours in a row that share a scale."""
SMALLEST = 4096
"""Elements of the smallest matrix whose moments are quantized, as torchao has it."""


class AdamW8bit(AdamW):
    """AdamW with two 8-bit moments for matrices of at least 4,096 elements in rows of whole blocks, else fp32 ones."""

    def zeros(self, parameter: Tensor) -> dict[str, Tensor]:
        """Codes, uint8 in the local weight's shape, and the scale of each block of a row."""
        weight = local(parameter)
        if not is_quantized(parameter):
            return super().zeros(parameter)
        if weight.shape[-1] % BLOCK:
            raise ValueError(f"optimizer.name adamw_8bit cannot shard rows into {weight.shape[-1]} columns; use adamw")
        codes = torch.zeros_like(weight, dtype=torch.uint8)
        scales = weight.new_zeros((*weight.shape[:-1], weight.shape[-1] // BLOCK), dtype=torch.float32)
        names = "exp_avg", "exp_avg_sq"
        every = {f"{name}_codes": codes.clone() for name in names}
        return every | {f"{name}_scale": scales.clone() for name in names}

    def update(self, parameter: Tensor, group: dict[str, Any], index: tuple[int, int]) -> None:
        """As `AdamW.update`."""
        if not is_quantized(parameter):
            super().update(parameter, group, index)
            return
        from torchao.optim.adam import single_param_adam

        state = self.counted(parameter)
        gradient = local(parameter.grad).float()  # type: ignore[arg-type]
        moments = [_moment(state, name) for name in ("exp_avg", "exp_avg_sq")]
        settings = (group["lr"], *group["betas"], group["weight_decay"], group["eps"])
        with self.fp32_weight(parameter, group, index) as weight:
            if weight.numel():
                step = state["step"].to(weight.device)
                single_param_adam(weight, gradient, step, *moments, None, *settings, True, False)


def is_quantized(parameter: Tensor) -> bool:
    """Whether the moments of a parameter have 8 bits: decided by its matrices, not by how they are sharded."""
    if parameter.dim() < 2:
        return False
    rows, columns = parameter.shape[-2:]
    return columns % BLOCK == 0 and rows * columns >= SMALLEST


def check_torchao() -> None:
    """Check that torchao is installed, and make its code tables, which must not happen on the meta device.

    Raises:
        ValueError: it is not installed.
    """
    if find_spec("torchao") is None:
        raise ValueError("optimizer.name adamw_8bit needs torchao: pip install 'seektune[torchao]'")
    from torchao.optim.subclass_8bit import get_qmap_signed, get_qmap_unsigned

    get_qmap_signed()
    get_qmap_unsigned()


def _moment(state: dict[str, Tensor], name: str) -> Tensor:
    """A moment as torchao's tensor; writing to it changes codes and scales."""
    from torchao.optim.subclass_8bit import OptimState8bit, get_qmap_signed, get_qmap_unsigned

    signed = name == "exp_avg"
    codes = state[f"{name}_codes"]
    table = torch.tensor(get_qmap_signed() if signed else get_qmap_unsigned(), device=codes.device)
    moment: Tensor = OptimState8bit(codes, state[f"{name}_scale"].view(-1), table, signed, torch.float32)
    return moment
