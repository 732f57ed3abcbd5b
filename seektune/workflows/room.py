"""Whether what a job holds fits the memory of its devices, asked before anything is laid out."""

import psutil
import torch

from seektune.model.config import DeepseekV4Config
from seektune.model.count import count_parameters
from seektune.parallel.mesh import Mesh
from seektune.parallel.pieces import is_stacked
from seektune.parallel.plan import Plan
from seektune.recipe.recipe import Recipe
from seektune.workflows.prepare import laid_out

PACKED = (torch.int8, torch.uint8)
"""Dtypes of frozen bytes."""
BYTES = {"fp32": {"fp32": 16}, "bf16": {"fp32": 18, "bf16_stochastic": 14}}
"""Bytes per parameter by dtype and master: weight, fp32 gradient, two fp32 moments, and the master copy if any."""


def refuse_too_large(recipe: Recipe, config: DeepseekV4Config, mesh: Mesh) -> None:
    """Answer before memory is filled to the brim, where the system would kill the process without a word.

    Raises:
        ValueError: the model cannot be trained in the memory of these devices.
    """
    count, plan = count_parameters(config), mesh.plan
    needed = _bytes_needed(recipe, config, plan) / 1e9
    memory = psutil.virtual_memory().total
    if mesh.device.type == "cuda":
        memory = torch.cuda.get_device_properties(mesh.device).total_memory * plan.world
    if needed > memory / 1e9:
        devices = "one device" if plan.world == 1 else f"{plan.world} processes"
        raise ValueError(
            f"training {(count.main + count.mtp) / 1e9:,.1f} B parameters on {devices} takes {needed:,.0f} GB for "
            f"weights, gradients and optimizer alone, but {mesh.device.type} has {memory / 1e9:,.0f} GB; "
            "try --model.preset=tiny"
        )


def _bytes_needed(recipe: Recipe, config: DeepseekV4Config, plan: Plan) -> int:
    """Weights, gradients and optimizer of all processes; with adapters, of a model that is laid out without memory."""
    if not recipe.lora.targets:
        count = count_parameters(config)
        return (count.main + count.mtp) * BYTES[recipe.model.dtype][recipe.optimizer.master] * plan.dp_replicate
    model = laid_out(recipe, config)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    held = model.state_dict()
    if recipe.model.offload == "stream":
        # two blocks at a time, and what is not packed
        blocks = [sum(p.nbytes for p in block.parameters() if p.dtype in PACKED) for block in model.blocks()]
        return sum(_needed(x, name in trained) for name, x in held.items() if x.dtype not in PACKED) + 2 * max(blocks)
    return sum(
        _needed(x, name in trained) * (plan.expert_replicate if is_stacked(name, x) else plan.dp_replicate)
        for name, x in held.items()
    )


def _needed(x: torch.Tensor, trained: bool) -> int:
    """Bytes of a tensor, and of its gradient and two moments if it is an adapter's."""
    return x.nbytes + (12 * x.numel() if trained else 0)
