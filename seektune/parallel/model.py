"""The sharded model that training uses: runs steps, scores rows, loads and saves weights.

Shapes: B rows, T tokens, L tokens here, E experts, M micro-batches, P parts of the loss.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.config import CSA
from seektune.model.head import TokenScores
from seektune.model.step_loss import StepLoss
from seektune.model.transformer import TransformerPart
from seektune.parallel.config import ParallelConfig
from seektune.parallel.fsdp import prepare_unused_mtp, reshard
from seektune.parallel.mesh import Mesh
from seektune.parallel.pipeline import Phase, Runner, SequentialRunner
from seektune.parallel.sharded_model import ShardedModel
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


class ParallelModel(ShardedModel):
    """The stages of this process and their runner: trains and scores; a whole model on a single process."""

    def __init__(
        self,
        stages: Mapping[int, Stage],
        runner: Runner,
        mesh: Mesh,
        prepare: Callable[[TransformerPart], None] = lambda part: None,
        trains_indexers_alone: bool = False,
        layout: ParallelConfig | None = None,
    ):
        """As `ShardedModel`; `runner` runs the stages."""
        super().__init__(stages, mesh, prepare, trains_indexers_alone, layout)
        self._runner = runner
        self._ran_without_mtp = False

    @classmethod
    def alone(cls, model: DeepseekV4ForCausalLM) -> "ParallelModel":
        """A model on one device."""
        stage = Stage.of(model)
        alone = cls({0: stage}, SequentialRunner(stage), Mesh.alone(model.embed.weight.device))
        alone.carried = model.carried
        return alone

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

    def top_tokens(self, batch: Batch, count: int, temperature: float) -> Tensor:
        """The likeliest tokens in place of each taught token, as `seektune.model.distillation.top_tokens` gives them,
        `[B, T, 2 count + 1]`; collective as `score`."""
        return self._dealt_out(batch, StageTask(None, temperature=temperature, top_k=count))

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
        """Scores `[B, T, 2]`, or likeliest tokens, of rows that are dealt out to the processes."""
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
        """Scores of rows by slices of them, `[B, R, L, 2]`, hidden states or likeliest tokens; those of other slices,
        and of other stages, are 0."""
        dims = self.mesh.dims
        rows, length = batch.tokens.shape
        found = self._runner.score(batch.to(self.device), task)
        for stage in self.stages.values():
            reshard(stage)
        dtype = next(iter(self.stages.values())).dtype if task.hidden else torch.float32
        shape = rows, dims.cp_size, length // dims.cp_size, task.width(self.config.hidden_size)
        scores = torch.zeros(shape, device=self.device, dtype=dtype)
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


def _round_up(length: int, of: int) -> int:
    return -(-length // of) * of
