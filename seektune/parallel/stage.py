"""A part of the model as training and exams run it: from token ids or streams to streams, a loss or scores.

Shapes: B rows, T tokens, L tokens here, S streams, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from seektune.model.causal_lm import DeepseekV4ForCausalLM
from seektune.model.gate import RoutingLedger
from seektune.model.objective import LossParts, Objective
from seektune.model.transformer import Losses, Taught, TransformerPart
from seektune.sequence import SequenceLayout, following


@dataclass(frozen=True)
class StageResult:
    """What a forward pass of a stage found out."""

    parts: Tensor
    """Values of `LossParts`, `[3]`; what other stages compute is 0."""
    loads: Mapping[int, Tensor]
    """Tokens of this process per expert, `[E]`, by layer id."""


class StageTask:
    """What is asked of forward passes, and what they found, in the order in which they ran. As `RoutingLedger`, no
    dataclass.
    """

    def __init__(self, objective: Objective | None):
        self.objective = objective
        """None for an exam, where each token's likelihood is asked for."""
        self.found: list[StageResult] = []


class Stage(TransformerPart):
    """A run of layers of a pipeline; the whole model where there is none.

    Between stages travel the streams `[B, L, S, D]`; where the MTP block runs, the next token's embedding is carried as
    one more stream from the first stage to the last, so that no second embedding table has to learn the same.
    """

    @classmethod
    def of(cls, model: DeepseekV4ForCausalLM) -> "Stage":
        """The whole model as one stage; the modules are the same objects."""
        layers = range(model.config.num_hidden_layers)
        stage = cls(model.config, layers, model.dtype, "plain", first=True, last=True)
        for name, child in model.named_children():
            setattr(stage, name, child)
        stage.sequence = model.sequence
        return stage

    def forward(self, x: Tensor, tokens: Tensor, documents: Tensor, labels: Tensor, task: StageTask) -> Tensor:
        """Streams for the next stage, or from the last the loss of the rows (a scalar) or their scores `[B, L, 2]`.

        Args:
            x: token ids of whole rows `[B, T]` for the first stage, what the stage before gave for the others.
            tokens: ids of whole rows, `[B, T]`: hash gates need them on any stage.
            documents: document numbers of whole rows.
            labels: of whole rows, unshifted.
            task: what is asked; a forward pass adds what it found.
        """
        layout = self.sequence(documents)
        objective = task.objective
        here = layout.mine(tokens)
        ledger = None if objective is None else objective.ledger()
        mtp = objective is not None and objective.mtp
        streams, ahead = self._open(x, here, tokens, layout, mtp)
        streams = self.run(streams, here, layout, ledger)
        if not self.is_last:
            streams = streams if ahead is None else torch.cat([streams, ahead.unsqueeze(2)], dim=2)
            if torch.is_grad_enabled() and not streams.requires_grad:
                # the schedules go back from every stage's output, also where all before it is frozen
                streams = streams.detach().requires_grad_()
            return self._note(task, streams, None, ledger)
        hidden = self.hidden(streams)
        if objective is None:
            scores = self.scores_of(hidden, layout, labels)
            return torch.stack([scores.losses_BT, scores.first_BT.float()], dim=-1)
        after = layout.mine(following(tokens))
        seen = None if ahead is None else self.look_ahead(streams, ahead, after, layout, ledger)
        return self._note(task, streams, self.losses(hidden, seen, layout, Taught(labels, objective.taught)), ledger)

    def _open(
        self, x: Tensor, here_BL: Tensor, tokens_BT: Tensor, layout: SequenceLayout, mtp: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The streams, and the next token's embedding where the MTP block will need it."""
        if self.is_first:
            return self.enter(here_BL), self.embed(layout.mine(following(tokens_BT))) if mtp else None
        return (x[:, :, :-1], x[:, :, -1]) if mtp else (x, None)

    def _note(self, task: StageTask, streams: Tensor, losses: Losses | None, ledger: RoutingLedger | None) -> Tensor:
        """Add to what was found; the stage's output, from which backward reaches the losses of its own layers too."""
        objective = task.objective
        if objective is None or ledger is None:
            return streams
        parts = LossParts.of(losses, objective.balance(ledger), streams.new_zeros((), dtype=torch.float32))
        task.found.append(StageResult(parts.values(), ledger.loads))
        total = objective.total(parts)
        if losses is not None:
            return total
        return _WithLoss.apply(streams, total) if objective.balance_weight > 0 else streams


class _WithLoss(torch.autograd.Function):
    """Streams unchanged; on the way back the loss gets the gradient 1, as if it were added to the last stage's."""

    @staticmethod
    def forward(ctx, streams, loss):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(loss.detach())
        # a copy, because the schedules detach what a stage gives in place, which a view does not allow
        return streams.clone()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (loss,) = ctx.saved_tensors
        return gradient, torch.ones_like(loss)
