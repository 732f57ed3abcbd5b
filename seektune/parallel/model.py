"""The sharded model that training uses: runs steps, scores rows, loads and saves weights.

Shapes: B rows, T tokens, L tokens here, E experts, M micro-batches, P parts of the loss.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from seektune.checkpoint import Shard, load_weights, save_weights, weight_shapes
from seektune.io.config_json import DRAFTER
from seektune.lora.state import adapter_state, base_state
from seektune.model.causal_lm import DeepseekV4ForCausalLM, checkpoint_shapes, exported_config
from seektune.model.config import CSA, DeepseekV4Config
from seektune.model.dspark import DSparkStage
from seektune.model.gate import Gate, check_tables
from seektune.model.head import TokenScores
from seektune.model.indexer import INDEXERS
from seektune.model.step_loss import StepLoss
from seektune.model.transformer import TransformerPart
from seektune.parallel.decode_stage import DecodeStage
from seektune.parallel.expert import apply_expert_parallel
from seektune.parallel.fsdp import prepare_unused_mtp, reshard
from seektune.parallel.mesh import Mesh
from seektune.parallel.pipeline import Phase, Runner, SequentialRunner
from seektune.parallel.placement import gathered, local, replicas_of, shard_of
from seektune.parallel.stage import Stage, StageTask
from seektune.sequence import Batch


@dataclass(frozen=True)
class Outcome:
    """Losses and expert loads of a step, over all micro-batches and processes."""

    names: tuple[str, ...]
    """Of the parts, as in `StepLoss`."""
    parts_MP: Tensor
    """Their share of each micro-batch, fp32."""
    loads: dict[int, Tensor]
    """Tokens per expert, int64 `[E]`, of every layer that ran, by layer id."""
    recall: dict[int, Tensor] = field(default_factory=dict)
    """What trained indexers found and what there was to find, int64 `[2]`, by layer id; empty if they are frozen."""

    def totals(self) -> dict[str, float]:
        """The parts of the whole step by name."""
        return dict(zip(self.names, self.parts_MP.sum(dim=0).tolist(), strict=True))


class ParallelModel:
    """The pipeline stages of this process and their runner; a whole model on a single process."""

    def __init__(
        self,
        stages: Mapping[int, Stage],
        runner: Runner,
        mesh: Mesh,
        prepare: Callable[[TransformerPart], None] = lambda part: None,
    ):
        """`prepare` was applied to each stage; `full_model` applies it to the whole model on the meta device."""
        self.stages = stages
        self.mesh = mesh
        self._prepare = prepare
        self.config: DeepseekV4Config = next(iter(stages.values())).config
        self._runner = runner
        self._ran_without_mtp = False
        self.carried: Path | None = None
        """The checkpoint folder of which exports copy what this model does not train and cannot encode as it was: the
        DSpark stages of a model without them, or the frozen weights around stages that are trained; None for nothing.
        """

    @classmethod
    def alone(cls, model: DeepseekV4ForCausalLM) -> "ParallelModel":
        """A model on one device."""
        stage = Stage.of(model)
        alone = cls({0: stage}, SequentialRunner(stage), Mesh.alone(model.embed.weight.device))
        alone.carried = model.carried
        return alone

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

    @cached_property
    def trains_indexers_alone(self) -> bool:
        """Whether indexers are the only part that is trained, by any process; collective when it is asked first."""
        trained = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        others = self.mesh.any(any(INDEXERS not in name for name in trained))
        return self.mesh.any(len(trained) > 0) and not others

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

    def full_model(self) -> TransformerPart:
        """The whole model, for its names and shapes; on meta if other processes hold parts of it."""
        if self.mesh.dims.world == 1:
            return self.whole
        dtype = next(iter(self.stages.values())).dtype
        whole = DeepseekV4ForCausalLM(self.config, "meta", dtype, drafter=self.trains_drafter)
        self._prepare(whole)
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
        self._prepare(model)
        apply_expert_parallel(model, self.mesh)
        model.load_state_dict({name: gathered(x).detach() for name, x in stage.state_dict().items()}, assign=True)
        return model

    def load_pretrained(self, folder: Path) -> None:
        """Load the local shards from a checkpoint folder in any format; quantized frozen weights keep their bytes.

        Raises:
            ValueError: a tensor is missing, unexpected, of the wrong shape or type, or damaged.
        """
        complete = weight_shapes(base_state(self.full_model()))
        load_weights(self.base_shards(), folder, checkpoint_shapes(self.config) | complete)
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

    def train(self, batches: Sequence[Batch], loss: StepLoss, phase: Phase) -> Outcome:
        """Forward and backward of a step, given this process's micro-batches; gradients are summed over processes."""
        if not loss.mtp and not self._ran_without_mtp:
            self._ran_without_mtp = True
            for stage in self.stages.values():
                prepare_unused_mtp(stage)
        task = StageTask(loss)
        self._runner.train([batch.to(self.device) for batch in self._padded(batches)], task, phase)
        return self._reduced(task, loss)

    def score(self, batch: Batch) -> TokenScores:
        """Scores of the taught tokens of rows, `[B, T]`; collective: all processes pass the same rows."""
        scores = self._dealt_out(batch, StageTask(None))
        return TokenScores(scores[..., 0], scores[..., 1] > 0)

    def logprobs(self, batch: Batch) -> Tensor:
        """Log-probabilities of the taught tokens as objectives have them, `[B, T]`, at the positions that predict
        them; collective as `score`."""
        return self._dealt_out(batch, StageTask(None, logprobs=True))[..., 0]

    def own_logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """As `logprobs`, of a micro-batch of this process's own rows; each process has one of its own.

        `temperature` divides the logits.
        """
        length = batch.tokens.shape[1]
        padded = batch.padded(length=_round_up(length, self.mesh.dims.cp_size))
        scores_BRL2 = self._scored(padded, StageTask(None, logprobs=True, temperature=temperature))
        return self.mesh.sum_of_rows(scores_BRL2[..., 0].contiguous()).flatten(1, 2)[:, :length]

    def own_hidden(self, batch: Batch) -> Tensor:
        """The head's inputs `[B, T, D]` of a micro-batch of this process's own rows; collective as `own_logprobs`."""
        length = batch.tokens.shape[1]
        padded = batch.padded(length=_round_up(length, self.mesh.dims.cp_size))
        hidden_BRLD = self._scored(padded, StageTask(None, hidden=True))
        return self.mesh.sum_of_rows(hidden_BRLD).flatten(1, 2)[:, :length]

    def _dealt_out(self, batch: Batch, task: StageTask) -> Tensor:
        """Scores `[B, T, 2]` of rows that are dealt out to the processes."""
        dims = self.mesh.dims
        dp = self.mesh.coords.dp
        rows, length = batch.tokens.shape
        own = -(-rows // dims.data_size)
        whole = batch.padded(own * dims.data_size, _round_up(length, dims.cp_size))
        mine = self._scored(whole.share(dp, dims.data_size), task)
        everything = torch.zeros(dims.data_size, *mine.shape, device=self.device)
        everything[dp] = mine
        return self.mesh.sum(everything).flatten(2, 3).flatten(0, 1)[:rows, :length]

    def _scored(self, batch: Batch, task: StageTask) -> Tensor:
        """Scores of rows by slices of them, `[B, R, L, 2]`, or hidden states; those of other slices, and of other
        stages, are 0."""
        dims = self.mesh.dims
        rows, length = batch.tokens.shape
        found = self._runner.score(batch.to(self.device), task)
        for stage in self.stages.values():
            reshard(stage)
        width = self.config.hidden_size if task.hidden else 2
        dtype = next(iter(self.stages.values())).dtype if task.hidden else torch.float32
        scores = torch.zeros(rows, dims.cp_size, length // dims.cp_size, width, device=self.device, dtype=dtype)
        if found is not None:
            scores[:, self.mesh.coords.cp] = found
        return scores

    def _padded(self, batches: Sequence[Batch]) -> list[Batch]:
        """Micro-batches that context parallelism can cut; a pipeline's have one shape."""
        dims = self.mesh.dims
        widths = [_round_up(batch.tokens.shape[1], dims.cp_size) for batch in batches]
        if dims.pp_size > 1:
            widths = [max(widths)] * len(batches)
        return [batch.padded(length=width) for batch, width in zip(batches, widths, strict=True)]

    def _reduced(self, task: StageTask, loss: StepLoss) -> Outcome:
        """Sum the results of all stages and processes."""
        config = self.config
        layers = config.num_hidden_layers + (config.mtp_layers if loss.mtp else 0)
        loads = torch.zeros(layers, config.n_routed_experts, dtype=torch.int64, device=self.device)
        zero = torch.zeros((), device=self.device)
        by_stage: dict[int, list[Tensor]] = {}
        for result in task.results:
            # a last stage with nothing but the MTP block has no load where that does not run
            parts_P = torch.stack([result.parts.get(name, zero) for name in loss.names])
            by_stage.setdefault(min(result.loads, default=layers), []).append(parts_P)
        parts = torch.stack([torch.stack(each) for each in by_stage.values()]).sum(dim=0)
        for result in task.results:
            for layer, load_E in result.loads.items():
                loads[layer] += load_E
        recall = {} if loss.indexers is None else self._recall(task)
        return Outcome(loss.names, self.mesh.sum(parts), dict(enumerate(self.mesh.sum(loads))), recall)

    def _recall(self, task: StageTask) -> dict[int, Tensor]:
        """What the indexers of all processes found."""
        layers = [layer for layer in range(self.config.num_hidden_layers) if self.config.ratio(layer) == CSA]
        found = torch.zeros(len(layers), 2, dtype=torch.int64, device=self.device)
        for result in task.results:
            for layer, counts in result.recall.items():
                found[layers.index(layer)] += counts
        return dict(zip(layers, self.mesh.sum(found), strict=True))

    def _shards(self, state: Callable[[nn.Module], Mapping[str, Tensor]]) -> dict[str, Shard]:
        states = [state(stage) for stage in self.stages.values()]
        return {name: shard_of(name, tensor, self.mesh) for each in states for name, tensor in each.items()}


def _round_up(length: int, of: int) -> int:
    return -(-length // of) * of
