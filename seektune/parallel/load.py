"""Loads a checkpoint for a forward pass on several processes: each reads its own experts and everything else."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from seektune.checkpoint import Shard, load_weights, locate
from seektune.checkpoint.load import check_fit
from seektune.checkpoint.source import FolderSource
from seektune.lora.delta import ExpertRange
from seektune.lora.files import load_adapter
from seektune.model.causal_lm import DeepseekV4ForCausalLM, checkpoint_shapes
from seektune.model.config import DeepseekV4Config
from seektune.model.gate import check_tables
from seektune.model.quantized import quantize_modules
from seektune.parallel.expert import apply_expert_parallel
from seektune.parallel.mesh import Mesh
from seektune.parallel.placement import shard_of


@dataclass(frozen=True)
class ModelPart:
    """What a process holds of a model that is spread over several."""

    model: DeepseekV4ForCausalLM
    experts: ExpertRange


def load_spread(
    source: str | Path,
    dtype: torch.dtype,
    numerics: str,
    mesh: Mesh,
    quantized: bool = False,
    adapter: Path | None = None,
    drafter: bool = False,
) -> ModelPart:
    """The model with this process's experts, as `DeepseekV4ForCausalLM.from_pretrained` reads it, and an adapter.

    With `drafter` it has the DSpark stages too, whose experts are spread like the others.

    Every process of the mesh calls it; they do not communicate.

    Raises:
        ValueError: as `from_pretrained` and `load_adapter`.
    """
    folder = locate(source)
    config = DeepseekV4Config.from_pretrained(folder)
    model = DeepseekV4ForCausalLM(config, "meta", dtype, numerics, drafter)
    files = FolderSource(folder)
    complete = checkpoint_shapes(config)
    check_fit(files, complete, folder)
    if quantized:
        quantize_modules(model, files.kind)
    apply_expert_parallel(model, mesh)
    model.to_empty(device=mesh.device)
    load_weights(shards_of(model, mesh), folder, complete)
    check_tables(model.gates(), folder)
    part = ModelPart(model, experts_here(config.n_routed_experts, mesh))
    if adapter is not None:
        load_adapter(model, adapter, experts=part.experts)
    return part


def shards_of(model: DeepseekV4ForCausalLM, mesh: Mesh) -> dict[str, Shard | Tensor]:
    """What of the whole model's tensors this process holds, by name."""
    return {name: shard_of(name, tensor, mesh) for name, tensor in model.state_dict().items()}


def experts_here(experts: int, mesh: Mesh) -> ExpertRange:
    """The routed experts of this process."""
    size = experts // mesh.dims.ep_size
    return ExpertRange(mesh.coords.ep * size, size, experts)
