"""Expert dispatch through DeepEP, where it is installed: a token is sent once to each process that has experts of it.

Written for `deep_ep.Buffer` of DeepEP 1.2; docs/deepseek-kernels.md has the contract. Tokens and sums of outputs
travel in bf16. Shapes: N tokens, K experts per token, R tokens that arrive here, P pairs of them with experts here,
D width, E experts.
"""

from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from seektune.kernels import upcast
from seektune.model.gate import Routing
from seektune.model.token_dispatch import Finish, RunExperts
from seektune.parallel.expert_dispatch import ExpertDispatch

PACKAGE = "deep_ep"


def check_deep_ep(dtype: torch.dtype) -> None:
    """Check that DeepEP can be imported and sends the model's numbers.

    Raises:
        ValueError: it cannot, or does not.
    """
    if find_spec(PACKAGE) is None:
        raise ValueError("parallel.ep_backend is deep_ep, but the package deep_ep is not installed; use torch")
    if dtype != torch.bfloat16:
        raise ValueError("parallel.ep_backend deep_ep sends bf16 only; use torch or model.dtype bf16")


class DeepEpDispatch(ExpertDispatch):
    """As `ExpertDispatch`, through a buffer of DeepEP."""

    def start(self, x_ND: Tensor, routing: Routing, experts: RunExperts) -> Finish:
        """Start sending the tokens, in bf16."""
        assert x_ND.dtype == torch.bfloat16, "DeepEP sends bf16"
        transfer = _Transfer(_buffer(self.group, x_ND.shape[1]))
        idx_NK = routing.experts_NK.contiguous()
        transfer.plan(idx_NK, routing.scores_NE.shape[1])
        rows, weights = _DispatchStart.apply(
            x_ND.contiguous(), routing.weights_NK.float().contiguous(), idx_NK, transfer
        )
        return partial(_finish, rows, weights, transfer, experts)


def _finish(rows: Tensor, weights: Tensor, transfer: "_Transfer", experts: RunExperts) -> Tensor:
    """Run the experts of the tokens that arrived, and sum their outputs where they came from."""
    x_RD, weights_RK = _DispatchWait.apply(rows, weights, transfer)
    counts = transfer.counts
    chosen = weights_RK.shape[1]
    # -1, for experts of other processes, comes first
    order = transfer.idx_RK.flatten().argsort(stable=True)[transfer.idx_RK.numel() - sum(counts) :]
    tokens_P = order // chosen
    out_PD = experts(x_RD[tokens_P], weights_RK.flatten()[order], counts)
    sums_RD = torch.zeros_like(x_RD, dtype=out_PD.dtype).index_put((tokens_P,), out_PD, accumulate=True)
    combined: Tensor = _Combine.apply(sums_RD.to(x_RD.dtype), transfer)
    return upcast(combined)


@cache
def _buffer(group: dist.ProcessGroup, width: int) -> Any:
    """The buffer of a group, large enough for rows of bf16; all its processes make it together."""
    library = import_module(PACKAGE).Buffer
    size = group.size()
    configs = library.get_dispatch_config(size), library.get_combine_config(size)
    near = max(config.get_nvl_buffer_size_hint(2 * width, size) for config in configs)
    far = max(config.get_rdma_buffer_size_hint(2 * width, size) for config in configs)
    return library(group, near, far)


class _Transfer:
    """The tokens of a layer on their way, and what DeepEP needs to send back to where they came from."""

    def __init__(self, buffer: Any):
        self.buffer = buffer
        self.handle: Any = None
        self.idx_RK: Tensor
        self.counts: list[int] = []
        self._layout: dict[str, Tensor | None] = {}
        self._event: Any = None
        self._gradients: tuple[Tensor, Tensor] | None = None

    def plan(self, idx_NK: Tensor, experts: int) -> None:
        """Compute how many tokens go where."""
        names = "num_tokens_per_rank", "num_tokens_per_rdma_rank", "num_tokens_per_expert", "is_token_in_rank"
        *layout, _ = self.buffer.get_dispatch_layout(idx_NK, experts)
        self._layout = dict(zip(names, layout, strict=True))

    def send(self, x_ND: Tensor, weights_NK: Tensor, idx_NK: Tensor) -> tuple[Tensor, Tensor]:
        """Start dispatching."""
        x_RD, self.idx_RK, weights_RK, self.counts, self.handle, self._event = self.buffer.dispatch(
            x_ND, topk_idx=idx_NK, topk_weights=weights_NK, async_finish=True, **self._layout
        )
        return x_RD, weights_RK

    def send_gradients(self, grad_RD: Tensor, grad_RK: Tensor) -> None:
        """Start sending the gradients of what arrived."""
        *gradients, self._event = self.buffer.combine(grad_RD, self.handle, topk_weights=grad_RK, async_finish=True)
        self._gradients = gradients[0], gradients[1]

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Wait for the gradients of what was sent."""
        assert self._gradients is not None, "nothing was sent"
        self.wait()
        found = self._gradients
        self._gradients = None
        return found

    def wait(self) -> None:
        """Let what computes from now on wait for what was started."""
        self._event.current_stream_wait()


class _DispatchStart(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND, weights_NK, idx_NK, transfer):  # type: ignore[no-untyped-def]
        ctx.transfer = transfer
        return transfer.send(x_ND, weights_NK, idx_NK)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_RD, grad_RK):  # type: ignore[no-untyped-def]
        return *ctx.transfer.gradients(), None, None


class _DispatchWait(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_RD, weights_RK, transfer):  # type: ignore[no-untyped-def]
        ctx.transfer = transfer
        transfer.wait()
        return x_RD.view_as(x_RD), weights_RK.view_as(weights_RK)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_RD, grad_RK):  # type: ignore[no-untyped-def]
        ctx.transfer.send_gradients(grad_RD.contiguous(), grad_RK.contiguous())
        return grad_RD, grad_RK, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_RD, transfer):  # type: ignore[no-untyped-def]
        ctx.transfer = transfer
        return transfer.buffer.combine(x_RD.contiguous(), transfer.handle)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ND):  # type: ignore[no-untyped-def]
        return ctx.transfer.buffer.dispatch(grad_ND.contiguous(), handle=ctx.transfer.handle)[0], None
