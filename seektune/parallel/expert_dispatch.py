"""Sends tokens to the processes that have their experts, and outputs back.

Shapes: N tokens, K experts per token, P = N * K token-expert pairs, Q pairs that arrive here, D width, R processes,
E experts, L experts of a process, C parts of the tokens.
"""

from functools import partial
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from seektune.kernels import sort_by_expert, upcast
from seektune.model.gate import Routing
from seektune.model.token_dispatch import Finish, RunExperts
from seektune.parallel.messages import ENCODINGS, AllToAll, RowEncoding

Counts = list[list[int]]
"""Pairs by process and expert there, R lists of L numbers."""


class ExpertDispatch:
    """All-to-all over the expert axis: pairs sorted by expert are sent to its process, outputs are sent back.

    Counts are sent first, then tokens, while the shared expert computes. With several parts, the messages of one are
    sent while the experts of another compute. Processes and experts without tokens take part like any other.
    """

    def __init__(self, group: dist.ProcessGroup, encoding: RowEncoding = ENCODINGS["model"], parts: int = 1):
        """`encoding` is that of tokens on their way to experts; `parts` is the number of parts of the tokens."""
        self.group = group
        self.encoding = encoding
        self.parts = parts
        self._size = group.size()

    def start(self, x_ND: Tensor, routing: Routing, experts: RunExperts) -> Finish:
        """Send the counts of all parts, then their tokens; outputs are summed in the order of `LocalDispatch`."""
        expert_count = routing.scores_NE.shape[1]
        rows = [
            (x_ND[part], routing.experts_NK[part], routing.weights_NK[part]) for part in _slices(len(x_ND), self.parts)
        ]
        sorted_pairs = [self.sort(experts_NK, expert_count) for _, experts_NK, _ in rows]
        sent_CRL = torch.stack([counts_E for _, counts_E in sorted_pairs]).unflatten(1, (self._size, -1))
        received_RCL = torch.empty_like(sent_CRL.transpose(0, 1), memory_format=torch.contiguous_format)
        dist.all_to_all_single(received_RCL, sent_CRL.transpose(0, 1).contiguous(), group=self.group)
        parts = [
            _PartDispatch(self, *each, order, sent_RL, received_RL)
            for each, (order, _), sent_RL, received_RL in zip(
                rows, sorted_pairs, sent_CRL, received_RCL.unbind(1), strict=True
            )
        ]
        return partial(_finish, parts, experts)

    def __deepcopy__(self, _memo: object) -> "ExpertDispatch":
        """The same object: a copy of a model belongs to the same processes."""
        return self

    def sort(self, experts_NK: Tensor, experts: int) -> tuple[Tensor, Tensor]:
        """The pairs here in the order of their experts, `[P]`, and each expert's number of them, `[E]`."""
        return sort_by_expert(experts_NK, experts)

    def read(self, sent_RL: Tensor, received_RL: Tensor, pairs: int) -> tuple[Counts, Counts]:
        """The counts of the `pairs` pairs here and of those that arrive, on the host, which waits only for them."""
        return sent_RL.tolist(), received_RL.tolist()


class _PartDispatch:
    """Dispatch of one part of the tokens to their experts, and the return of the outputs."""

    def __init__(
        self,
        dispatch: ExpertDispatch,
        x_ND: Tensor,
        experts_NK: Tensor,
        weights_NK: Tensor,
        order: Tensor,
        sent_RL: Tensor,
        received_RL: Tensor,
    ):
        """Send tokens and weights."""
        sent, received = dispatch.read(sent_RL, received_RL, len(order))
        self._send_counts = [sum(row) for row in sent]
        self._receive_counts = [sum(row) for row in received]
        self._counts = [sum(column) for column in zip(*received, strict=True)]
        self._order = order
        self._chosen = experts_NK.shape[1]
        self._group = dispatch.group
        self._received_RL = received_RL
        self._x = self._message(x_ND[order // self._chosen], dispatch.encoding)
        self._weights = self._message(weights_NK.flatten()[order], ENCODINGS["model"])
        self._out: AllToAll | None = None

    def compute(self, experts: RunExperts) -> None:
        """Wait for the tokens, run the experts, and send the outputs back."""
        place_Q = self._places()
        x_QD = self._x.wait()
        weights_Q = self._weights.wait()
        out_QD = experts(x_QD[place_Q], weights_Q[place_Q], self._counts)
        back = out_QD[place_Q.argsort()]
        self._out = AllToAll(back, self._receive_counts, self._send_counts, self._group, ENCODINGS["model"])

    def finish(self) -> Tensor:
        """Wait for the outputs, and sum those of each token, fp32 `[N, D]`."""
        assert self._out is not None, "the experts have not run"
        out_PD = self._out.wait()
        return upcast(out_PD[self._order.argsort()].unflatten(0, (-1, self._chosen))).sum(dim=1)

    def _message(self, rows: Tensor, encoding: RowEncoding) -> AllToAll:
        return AllToAll(rows, self._send_counts, self._receive_counts, self._group, encoding)

    def _places(self) -> Tensor:
        """The order that sorts what arrives by expert, `[Q]`."""
        processes, experts = self._received_RL.shape
        expert_Q = torch.arange(experts, device=self._received_RL.device).repeat(processes)
        expert_Q = expert_Q.repeat_interleave(self._received_RL.flatten(), output_size=sum(self._receive_counts))
        return expert_Q.argsort(stable=True)


def _finish(parts: list[_PartDispatch], experts: RunExperts) -> Tensor:
    for part in parts:
        part.compute(experts)
    outputs = [part.finish() for part in parts]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _slices(rows: int, parts: int) -> list[slice]:
    """Slices of about equal length."""
    ends = [rows * part // parts for part in range(parts + 1)]
    return [slice(begin, end) for begin, end in pairwise(ends)]
