"""Assumptions of a dry run where shapes depend on values: full rows of one document, all taught; even routing.

Shapes: B rows, T tokens, N tokens of all rows, P token-expert pairs, E experts, R processes, L experts of a process,
D width.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from seektune.model.dspark_loss import Anchors
from seektune.model.gate import Routing
from seektune.model.step_loss import DraftObjective
from seektune.model.token_dispatch import LocalDispatch
from seektune.parallel.context import apply_context_parallel
from seektune.parallel.expert_dispatch import Counts, ExpertDispatch
from seektune.parallel.mesh import Mesh
from seektune.parallel.model import ParallelModel
from seektune.sequence import SequenceLayout


class FullRows(SequenceLayout):
    """Rows of one document whose tokens are all taught; no value of `documents` is read."""

    @classmethod
    def from_documents(cls, documents: Tensor) -> "FullRows":
        """As `SequenceLayout`, from the shape alone."""
        positions = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
        return cls(positions, documents)

    def numbered(self) -> tuple[Tensor, int]:
        """One document per row."""
        rows = self.documents.shape[0]
        return torch.arange(rows, device=self.documents.device)[:, None].expand_as(self.documents), rows

    def taught(self, x_BTD: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        """All positions, the last token of a row included."""
        return x_BTD.flatten(0, 1), targets_BT.flatten()


class FirstDrafts(DraftObjective):
    """Drafts from the first tokens of full rows."""

    def choose(self, ids_BT: Tensor, layout: SequenceLayout, labels_BT: Tensor) -> Anchors:
        """As `DraftObjective`, from the shape alone."""
        rows, length = ids_BT.shape
        number_N = torch.arange(min(self.anchors, rows * (length - 1)), device=ids_BT.device)
        return Anchors(number_N // (length - 1), number_N % (length - 1))


class EvenLocal(LocalDispatch):
    """Every expert gets as many pairs as any other, up to one."""

    def sort(self, routing: Routing) -> tuple[Tensor, Tensor, list[int]]:
        """As `LocalDispatch`, without reading the chosen experts."""
        flat_P = routing.experts_NK.flatten()
        weights_P = routing.weights_NK.flatten()
        order = flat_P.argsort(stable=True)
        experts = routing.scores_NE.shape[1]
        return order // routing.experts_NK.shape[1], weights_P[order], _evenly(len(flat_P), experts)


class EvenDispatch(ExpertDispatch):
    """The same between processes, all of which have as many tokens as this one."""

    def sort(self, experts_NK: Tensor, experts: int) -> tuple[Tensor, Tensor]:
        """As `ExpertDispatch`; the counts are read below."""
        flat_P = experts_NK.flatten()
        return flat_P.argsort(stable=True), flat_P.new_zeros(experts)

    def read(self, sent_RL: Tensor, received_RL: Tensor, pairs: int) -> tuple[Counts, Counts]:
        """The counts of even routing."""
        processes, experts = sent_RL.shape
        every = _evenly(pairs, processes * experts)
        sent = [every[begin : begin + experts] for begin in range(0, len(every), experts)]
        return sent, [sent[dist.get_rank(self.group)]] * processes


def assume_even_routing(model: ParallelModel, mesh: Mesh) -> None:
    """Replace the model's `sequence` and `dispatch` so that no shape depends on a value."""
    for stage in model.stages.values():
        stage.sequence = FullRows.from_documents
        apply_context_parallel(stage, mesh)
        for block in stage.blocks():
            known = block.ffn.dispatch
            block.ffn.dispatch = _even(known) if isinstance(known, ExpertDispatch) else EvenLocal()


def _even(known: ExpertDispatch) -> EvenDispatch:
    return EvenDispatch(known.group, known.encoding, known.parts)


def _evenly(pairs: int, cells: int) -> list[int]:
    each, rest = divmod(pairs, cells)
    return [each + (cell < rest) for cell in range(cells)]
