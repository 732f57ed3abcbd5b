"""A pipeline stage in training and evaluation: from token ids or streams to streams, a loss or scores.

Shapes: B rows, T tokens, L tokens here, S streams, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from seektune.model.attach_loss import attach_loss
from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.distillation import top_tokens
from seektune.model.dspark import DSparkStage, LayerMeans, target_layers
from seektune.model.dspark_loss import Drafting, DraftRows, backward_in_chunks, passes, total_weight
from seektune.model.gate import RoutingLedger
from seektune.model.head import Losses, Taught
from seektune.model.indexer_loss import zero_connected_to
from seektune.model.objective import token_logprobs_of
from seektune.model.step_loss import DRAFT_PARTS, LOSS, DraftObjective, StepLoss
from seektune.model.transformer import Activations, TokenRows, TransformerPart


@dataclass(frozen=True)
class StageResult:
    """Losses and expert loads of one forward pass of a stage."""

    parts: Mapping[str, Tensor]
    """The parts that the stage has computed, by the names of `StepLoss`, without graph."""
    loads: Mapping[int, Tensor]
    """Tokens of this process per expert, `[E]`, by layer id."""
    recall: Mapping[int, Tensor] = field(default_factory=dict)
    """What trained indexers find, `[2]` as `index_recall`, by layer id."""


class StageTask:
    """What forward passes compute, and their results in order.

    Like `RoutingLedger` not a dataclass, which FSDP2 would copy.
    """

    def __init__(
        self,
        loss: StepLoss | None,
        logprobs: bool = False,
        temperature: float = 1.0,
        hidden: bool = False,
        top_k: int = 0,
    ):
        self.loss = loss
        """None for scores of each token."""
        self.logprobs = logprobs
        """Whether scores are computed as objectives compute log-probabilities, to the last bit."""
        self.temperature = temperature
        """Divides the logits of such log-probabilities, and those of `top_k`."""
        self.hidden = hidden
        """Whether hidden states for the head, `[B, L, D]`, are wanted in place of scores."""
        self.top_k = top_k
        """How many of the likeliest tokens are wanted in place of scores, as `top_tokens` gives them."""
        self.results: list[StageResult] = []

    def width(self, hidden_size: int) -> int:
        """Numbers of each token that the last stage of a model gives, where there is no loss."""
        if self.hidden:
            return hidden_size
        return 2 * self.top_k + 1 if self.top_k else 2


class Stage(TransformerPart):
    """Consecutive layers of a pipeline; the whole model without one.

    Stages exchange the streams `[B, L, S, D]`; if the MTP block runs, the next token's embedding is sent as
    one more stream from the first stage to the last, so that the last stage needs no embedding table of its own.
    """

    @classmethod
    def of(cls, model: DeepseekV4ForCausalLM) -> "Stage":
        """The whole model as one stage; the modules are the same objects."""
        layers = range(model.config.num_hidden_layers)
        drafter = len(model.mtp) > 0
        stage = cls(model.config, layers, model.dtype, model.numerics, first=True, last=True, drafter=drafter)
        for name, child in model.named_children():
            setattr(stage, name, child)
        stage.sequence = model.sequence
        return stage

    def forward(
        self,
        x: Tensor,
        tokens: Tensor,
        documents: Tensor,
        labels: Tensor,
        columns: Mapping[str, Tensor],
        task: StageTask,
    ) -> Tensor:
        """Streams for the next stage, or from the last the loss of the rows (a scalar), or their scores `[B, L, 2]`,
        hidden states or likeliest tokens.

        Args:
            x: token ids of whole rows `[B, T]` for the first stage, the output of the stage before for the others.
            tokens: ids of whole rows, `[B, T]`: hash gates need them on any stage.
            documents: document numbers of whole rows.
            labels: of whole rows, unshifted.
            columns: further columns of whole rows, for the objective.
            task: what to compute; a forward pass appends its result.
        """
        rows = TokenRows(tokens, self.sequence(documents))
        wanted = task.loss
        if wanted is not None and wanted.drafts is not None:
            return self._draft(task, rows, labels, wanted.drafts)
        ledger = None if wanted is None else wanted.ledger()
        mtp = wanted is not None and wanted.mtp
        activations = self.backbone(rows, mtp, ledger, None if self.is_first else _unpack(x, mtp))
        if not self.is_last:
            return self._record(task, _pack(activations), None, ledger)
        reads = activations
        if wanted is not None and wanted.indexers_alone:
            reads = replace(activations, streams_BTSD=activations.streams_BTSD.detach())
        hidden = self.read_out(reads, rows, ledger)
        if wanted is None and task.hidden:
            return hidden.main_BTD
        if wanted is None and task.top_k:
            head_VD = self.head.values()
            return top_tokens(hidden.main_BTD, rows.layout, labels, head_VD, task.top_k, task.temperature)
        if wanted is None and task.logprobs:
            main_BTD = hidden.main_BTD / task.temperature
            logprobs_BT = token_logprobs_of(main_BTD, rows.layout, labels, self.head.values())
            return torch.stack([logprobs_BT, torch.zeros_like(logprobs_BT)], dim=-1)
        if wanted is None:
            scores = self.scores_of(hidden.main_BTD, rows.layout, labels)
            return torch.stack([scores.losses_BT, scores.first_BT.float()], dim=-1)
        taught = Taught(labels, wanted.divisor, columns)
        losses = self.losses(hidden, rows.layout, taught, wanted.objective, wanted.count)
        return self._record(task, activations.streams_BTSD, losses, ledger)

    def _draft(self, task: StageTask, rows: TokenRows, labels: Tensor, objective: DraftObjective) -> Tensor:
        """The loss of the DSpark stages of a whole model; most of its backward is done, and none is of the backbone."""
        stages = [stage for stage in self.mtp if isinstance(stage, DSparkStage)]
        size = self.config.dspark_block_size or 0
        anchors = objective.choose(rows.ids_BT, rows.layout, labels)
        divisor = objective.anchors * objective.micro_batches * total_weight(size)
        text = DraftRows(rows.tokens(), labels, rows.layout, *self._read(rows))
        drafting = Drafting(stages, self.embed, self.head.values().detach(), self.config, text)
        losses = backward_in_chunks(drafting, anchors, divisor, passes(objective.anchors))
        parts = (losses.cross_entropy, losses.distance, losses.confidence)
        found = {LOSS: losses.loss, **dict(zip(DRAFT_PARTS, parts, strict=True))}
        task.results.append(StageResult({name: part.detach() for name, part in found.items()}, {}))
        return losses.loss

    @torch.no_grad()
    def _read(self, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """The means after the layers that a drafter reads, side by side, and the input of the head."""
        means = LayerMeans(target_layers(self.config))
        hidden_BTD = self.hidden(self.backbone(rows, means=means).streams_BTSD)
        return means.joined(), hidden_BTD

    def _record(self, task: StageTask, streams: Tensor, losses: Losses | None, ledger: RoutingLedger | None) -> Tensor:
        """Append a result; returns the stage's output, whose backward also reaches the losses of its own layers."""
        wanted = task.loss
        if wanted is None or ledger is None:
            return streams
        parts = wanted.parts(losses, ledger)
        recall = {layer: each.recall for layer, each in ledger.indexer_losses.items() if each.recall is not None}
        found = {name: part.detach().float() for name, part in parts.items()}
        task.results.append(StageResult(found, ledger.loads, recall))
        total = wanted.total(parts, streams.new_zeros((), dtype=torch.float32))
        if losses is not None:
            # in a warm-up, backward reaches the losses that are attached to layers through gradients of zero
            return total + zero_connected_to(streams) if wanted.indexers_alone else total
        return attach_loss(streams, total) if wanted.balance_weight > 0 else streams


def _pack(x: Activations) -> Tensor:
    """Pack streams and the next token's embedding, as one more stream, into the one tensor that a pipeline sends."""
    streams = x.streams_BTSD
    if x.next_embedding_BTD is not None:
        streams = torch.cat([streams, x.next_embedding_BTD.unsqueeze(2)], dim=2)
    if torch.is_grad_enabled() and not streams.requires_grad:
        # the schedules run backward from every stage's output, even where everything before it is frozen
        streams = streams.detach().requires_grad_()
    return streams


def _unpack(x: Tensor, mtp: bool) -> Activations:
    """The inverse of `_pack`."""
    return Activations(x[:, :, :-1], x[:, :, -1]) if mtp else Activations(x)
