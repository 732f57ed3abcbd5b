"""The sharded weights of a model: names, shards, loading, saving, and the model that decodes with them."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from seektune.checkpoint import Shard, load_weights, save_weights, weight_shapes
from seektune.io.config_json import DRAFTER
from seektune.lora.state import adapter_state, base_state
from seektune.model.causal_lm import DeepseekV4ForCausalLM, checkpoint_shapes, exported_config
from seektune.model.config import DeepseekV4Config
from seektune.model.dspark import DSparkStage
from seektune.model.gate import Gate, check_tables
from seektune.model.indexer import INDEXERS
from seektune.model.transformer import TransformerPart
from seektune.parallel.config import ParallelConfig
from seektune.parallel.decode_stage import DecodeStage
from seektune.parallel.expert import apply_expert_parallel
from seektune.parallel.mesh import Mesh
from seektune.parallel.placement import gathered, local, replicas_of, shard_of
from seektune.parallel.stage import Stage


class ShardedModel:
    """The pipeline stages of this process: their parameters, their shards, and the checkpoint that these come from."""

    def __init__(
        self,
        stages: Mapping[int, Stage],
        mesh: Mesh,
        prepare: Callable[[TransformerPart], None],
        trains_indexers_alone: bool = False,
        layout: ParallelConfig | None = None,
    ):
        """`prepare` was applied to each stage; `full_model` applies it to the whole model on the meta device.

        `layout` is what the stages were made with; None for the defaults.
        """
        self.stages = stages
        self.mesh = mesh
        self.prepare = prepare
        self.layout = ParallelConfig() if layout is None else layout
        self.trains_indexers_alone = trains_indexers_alone
        """Whether indexers are the only part that is trained, by any process."""
        self.config: DeepseekV4Config = next(iter(stages.values())).config
        self.carried: Path | None = None
        """The checkpoint folder of which exports copy what this model does not train and cannot encode as it was: the
        DSpark stages of a model without them, or the frozen weights around stages that are trained; None for nothing.
        """

    @property
    def device(self) -> torch.device:
        """Device for batches."""
        return self.mesh.device

    @property
    def whole(self) -> Stage:
        """The only stage of a job with one process."""
        assert self.mesh.dims.world == 1, "other processes hold the rest"
        return self.stages[0]

    def is_adapted(self) -> bool:
        """Whether the model has adapters."""
        return any(stage.is_adapted() for stage in self.stages.values())

    @property
    def trains_drafter(self) -> bool:
        """Whether the model has DSpark stages, which are then the only part that is trained."""
        return any(isinstance(block, DSparkStage) for stage in self.stages.values() for block in stage.mtp)

    @property
    def has_frozen_base(self) -> bool:
        """Whether training changes a part of the tensors only: adapters, DSpark stages or indexers."""
        return self.trains_indexers_alone or self.is_adapted() or self.trains_drafter

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters of this process, by released module names; they may be sharded."""
        for stage in self.stages.values():
            yield from stage.named_parameters()

    def parameters(self) -> Iterator[nn.Parameter]:
        """As `named_parameters`."""
        return (parameter for _, parameter in self.named_parameters())

    def trainable(self) -> int:
        """The number of trainable weights of all processes."""
        own = sum(
            local(parameter).numel() / replicas_of(name, parameter, self.mesh)
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        )
        return round(float(self.mesh.sum(torch.tensor(own, dtype=torch.float64, device=self.device))))

    def gates(self) -> dict[int, Gate]:
        """Gates of this process by layer id."""
        return {layer: gate for stage in self.stages.values() for layer, gate in stage.gates().items()}

    def shards(self) -> dict[str, Shard]:
        """The local shards of weights and buffers; writing to them changes the model."""
        return self._shards(nn.Module.state_dict)

    def base_shards(self) -> dict[str, Shard]:
        """Those of `shards` that do not belong to an adapter."""
        return self._shards(base_state)

    def adapter_shards(self) -> dict[str, Shard]:
        """Those of `shards` that belong to an adapter."""
        return self._shards(adapter_state)

    def trained_shards(self) -> dict[str, Shard]:
        """Those of `shards` that training changes."""
        if self.trains_drafter:
            return {name: shard for name, shard in self.shards().items() if name.startswith(DRAFTER)}
        if self.trains_indexers_alone:
            return {name: shard for name, shard in self.shards().items() if INDEXERS in name}
        return self.adapter_shards() if self.is_adapted() else self.shards()

    def frozen_shards(self) -> dict[str, Shard]:
        """Those of `shards` that training does not change."""
        trained = self.trained_shards()
        return {name: shard for name, shard in self.shards().items() if name not in trained}

    @property
    def decode_layout(self) -> ParallelConfig:
        """As `layout`; tokens are sent to their experts in one part, as decode steps have few."""
        return self.layout.model_copy(update={"ep_parts": 1})

    def full_model(self) -> TransformerPart:
        """The whole model, for its names and shapes; on meta if other processes hold parts of it."""
        if self.mesh.dims.world == 1:
            return self.whole
        dtype = next(iter(self.stages.values())).dtype
        whole = DeepseekV4ForCausalLM(self.config, "meta", dtype, drafter=self.trains_drafter)
        self.prepare(whole)
        return whole

    def decodable(self) -> DeepseekV4ForCausalLM | DecodeStage:
        """This process's part as a model that can decode, without what other processes hold. Collective.

        FSDP2 has no part in it: nothing needs a gradient, and what it cuts is gathered into new memory; everything else
        is on the same memory.
        """
        (stage,) = self.stages.values()
        model: DeepseekV4ForCausalLM | DecodeStage
        if self.mesh.dims.pp_size > 1:
            layers = [block.ffn.layer for block in stage.layers]
            model = DecodeStage(self.config, layers, self.mesh, stage.dtype, stage.numerics)
        else:
            model = DeepseekV4ForCausalLM(self.config, "meta", stage.dtype, stage.numerics, self.trains_drafter)
        self.prepare(model)
        apply_expert_parallel(model, self.mesh, self.decode_layout)
        model.load_state_dict({name: gathered(x).detach() for name, x in stage.state_dict().items()}, assign=True)
        return model

    def load_pretrained(self, folder: Path, checkpoint: DeepseekV4Config | None = None) -> None:
        """Load the local shards from a checkpoint folder in any format; quantized frozen weights keep their bytes.

        `checkpoint` is the config of the folder, if the model lacks some of its tensors on purpose.

        Raises:
            ValueError: a tensor is missing, unexpected, of the wrong shape or type, or damaged.
        """
        complete = weight_shapes(base_state(self.full_model()))
        load_weights(self.base_shards(), folder, checkpoint_shapes(checkpoint or self.config) | complete)
        check_tables(self.gates(), folder)

    def save_pretrained(self, folder: Path, format: str = "bf16", original: Path | None = None) -> None:
        """As `DeepseekV4ForCausalLM.save_pretrained`; every process calls it, rank 0 writes."""
        assert not self.is_adapted(), "adapters have files of their own"
        whole = self.full_model()
        config = exported_config(self.config, drafter=self.carried is not None or len(whole.mtp) > 0)
        complete = weight_shapes(whole.state_dict())
        state = self.shards()
        if self.trains_drafter and self.carried is not None:
            state = self.trained_shards()
            complete = {name: shape for name, shape in complete.items() if name.startswith(DRAFTER)}
        save_weights(
            state,
            config,
            folder,
            format,
            original,
            group=self.mesh.ranks.group,
            complete=complete,
            carried=self.carried,
        )

    def _shards(self, state: Callable[[nn.Module], Mapping[str, Tensor]]) -> dict[str, Shard]:
        states = [state(stage) for stage in self.stages.values()]
        return {name: shard_of(name, tensor, self.mesh) for each in states for name, tensor in each.items()}
