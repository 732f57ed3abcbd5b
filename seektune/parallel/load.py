"""Loads a checkpoint for a forward pass on several processes: each reads its own layers, and of experts its own."""

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
from seektune.model.quantized import KindOf, quantize_modules
from seektune.model.transformer import TransformerPart
from seektune.parallel.decode_stage import DecodeStage
from seektune.parallel.expert import apply_expert_parallel
from seektune.parallel.layer_split import split_layers
from seektune.parallel.mesh import Mesh
from seektune.parallel.placement import shard_of


@dataclass(frozen=True)
class ModelPart:
    """What a process holds of a model that is spread over several."""

    model: DeepseekV4ForCausalLM | DecodeStage
    experts: ExpertRange

    def load_adapter(self, folder: Path) -> None:
        """Load what of an adapter changes this part, in addition to the adapters that it has.

        Raises:
            ValueError: as `lora.files.load_adapter`.
        """
        whole = DeepseekV4ForCausalLM(self.model.config, "meta") if isinstance(self.model, DecodeStage) else None
        load_adapter(self.model, folder, experts=self.experts, whole=whole)


def load_spread(
    source: str | Path,
    dtype: torch.dtype,
    numerics: str,
    mesh: Mesh,
    quantized: bool = False,
    adapter: Path | None = None,
    drafter: bool = False,
) -> ModelPart:
    """The layers and experts of this process, as `DeepseekV4ForCausalLM.from_pretrained` reads them, and an adapter.

    With `drafter` it has the DSpark stages too, whose experts are spread like the others.

    Every process of the mesh calls it; they do not communicate.

    Raises:
        ValueError: as `from_pretrained` and `load_adapter`.
    """
    folder = locate(source)
    config = DeepseekV4Config.from_pretrained(folder)
    files = FolderSource(folder)
    complete = checkpoint_shapes(config)
    check_fit(files, complete, folder)
    model = without_weights(config, dtype, numerics, mesh, files.kind if quantized else None, drafter)
    model.to_empty(device=mesh.device)
    load_weights(shards_of(model, mesh), folder, complete)
    check_tables(model.gates(), folder)
    part = ModelPart(model, experts_here(config.n_routed_experts, mesh))
    if adapter is not None:
        part.load_adapter(adapter)
    return part


def without_weights(
    config: DeepseekV4Config,
    dtype: torch.dtype,
    numerics: str,
    mesh: Mesh,
    kind_of: KindOf | None,
    drafter: bool = False,
) -> DeepseekV4ForCausalLM | DecodeStage:
    """The layers and experts of this process, on the meta device; quantized if `kind_of` gives the kinds on disk."""
    stages = mesh.dims.pp_size
    model: DeepseekV4ForCausalLM | DecodeStage
    if stages == 1:
        model = DeepseekV4ForCausalLM(config, "meta", dtype, numerics, drafter)
    else:
        layers = split_layers(config.num_hidden_layers, config.mtp_layers, stages)[mesh.coords.pp]
        model = DecodeStage(config, layers, mesh, dtype, numerics)
    if kind_of is not None:
        quantize_modules(model, kind_of)
    apply_expert_parallel(model, mesh)
    return model


def shards_of(model: TransformerPart, mesh: Mesh) -> dict[str, Shard | Tensor]:
    """What of the whole model's tensors this process holds, by name."""
    return {name: shard_of(name, tensor, mesh) for name, tensor in model.state_dict().items()}


def experts_here(experts: int, mesh: Mesh) -> ExpertRange:
    """The routed experts of this process."""
    size = experts // mesh.dims.ep_size
    return ExpertRange(mesh.coords.ep * size, size, experts)
