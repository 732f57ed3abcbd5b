"""Expert parallelism: the experts of a layer are sharded over processes, and tokens are sent to them and back.

Shapes: N tokens, K experts per token, P = N * K token-expert pairs, Q pairs that arrive here, D width, R processes,
E experts, L experts of a process.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd

from seektune.kernels import sort_by_expert, upcast
from seektune.model.gate import Routing
from seektune.model.token_dispatch import RunExperts
from seektune.model.transformer import TransformerPart
from seektune.parallel.mesh import Mesh

Counts = list[list[int]]
"""Pairs by process and expert there, R lists of L numbers."""


class ExpertDispatch:
    """All-to-all over the expert axis: pairs sorted by expert are sent to its process, outputs are sent back.

    Counts travel first. A process without tokens, or an expert without tokens, takes part like any other.
    """

    def __init__(self, group: dist.ProcessGroup):
        self.group = group
        self._size = group.size()

    def __call__(self, x_ND: Tensor, routing: Routing, experts: RunExperts) -> Tensor:
        """Sum of each token's expert outputs, fp32 `[N, D]`, in the order of `LocalDispatch`."""
        k = routing.experts_NK.shape[1]
        order, counts_E = self.sort(routing)
        sent, received, place_Q, counts_L = self._exchange(counts_E.view(self._size, -1), len(order))
        x_QD = self._carry(x_ND[order // k], received, sent)
        weights_Q = self._carry(routing.weights_NK.flatten()[order], received, sent)
        out_QD = experts(x_QD[place_Q], weights_Q[place_Q], counts_L)
        out_PD = self._carry(out_QD[place_Q.argsort()], sent, received)
        return upcast(out_PD[order.argsort()].unflatten(0, (-1, k))).sum(dim=1)

    def __deepcopy__(self, _memo: object) -> "ExpertDispatch":
        """The same object: a copy of a model belongs to the same processes."""
        return self

    def sort(self, routing: Routing) -> tuple[Tensor, Tensor]:
        """The pairs here in the order of their experts, `[P]`, and each expert's number of them, `[E]`."""
        return sort_by_expert(routing.experts_NK, routing.scores_NE.shape[1])

    def read(self, sent_RL: Tensor, received_RL: Tensor, pairs: int) -> tuple[Counts, Counts]:
        """The counts of the `pairs` pairs here and of those that arrive, on the host, which waits only for them."""
        return sent_RL.tolist(), received_RL.tolist()

    def _exchange(self, sent_RL: Tensor, pairs: int) -> tuple[list[int], list[int], Tensor, list[int]]:
        """Pairs sent to and received from each process; the order that sorts what arrives by expert; its counts."""
        received_RL = torch.empty_like(sent_RL)
        dist.all_to_all_single(received_RL, sent_RL.contiguous(), group=self.group)
        sent, received = self.read(sent_RL, received_RL, pairs)
        arriving = [sum(row) for row in received]
        counts = [sum(column) for column in zip(*received, strict=True)]
        expert_Q = torch.arange(sent_RL.shape[1], device=sent_RL.device).repeat(self._size)
        expert_Q = expert_Q.repeat_interleave(received_RL.flatten(), output_size=sum(arriving))
        return [sum(row) for row in sent], arriving, expert_Q.argsort(stable=True), counts

    def _carry(self, x: Tensor, arriving: list[int], leaving: list[int]) -> Tensor:
        return all_to_all_single_autograd(x.contiguous(), arriving, leaving, self.group)


def apply_expert_parallel(part: TransformerPart, mesh: Mesh) -> None:
    """Keep this process's experts of every layer and set the all-to-all as `dispatch` of the expert layers."""
    if mesh.axes is None or mesh.dims.ep_size == 1:
        return
    for block in part.blocks():
        shard_experts(block.ffn.experts, mesh)
        block.ffn.dispatch = ExpertDispatch(mesh.axes.experts)


def shard_experts(experts: nn.Module, mesh: Mesh) -> None:
    """Replace each stacked parameter `[E, ...]` by the `[L, ...]` of this process; it must still be on `meta`.

    Bytes of frozen experts and their adapters are cut like weights; an A that all experts share stays whole.
    """
    for module in experts.modules():
        for name, whole in list(module.named_parameters(recurse=False)):
            assert whole.is_meta, "experts are split before they have memory"
            if whole.dim() == 3:
                mine = whole.new_empty(whole.shape[0] // mesh.dims.ep_size, *whole.shape[1:])
                module.register_parameter(name, nn.Parameter(mine, requires_grad=whole.requires_grad))
