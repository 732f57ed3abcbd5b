"""A `deep_ep.Buffer` over gloo, with the signatures of DeepEP 1.2; it checks what those require."""

from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Event:
    """Of a call that has ended."""

    def current_stream_wait(self) -> None:
        pass


class Config:
    def get_nvl_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        return hidden_bytes * num_ranks

    def get_rdma_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        return 0


class Buffer:
    def __init__(self, group: dist.ProcessGroup, num_nvl_bytes: int = 0, num_rdma_bytes: int = 0):
        assert num_nvl_bytes > 0
        self.group = group
        self.rank = group.rank()
        self.size = group.size()

    @staticmethod
    def get_dispatch_config(num_ranks: int) -> Config:
        return Config()

    get_combine_config = get_dispatch_config

    def get_dispatch_layout(self, topk_idx: Tensor, num_experts: int) -> tuple[Any, ...]:
        assert topk_idx.dtype == torch.int64
        rank_NK = topk_idx // (num_experts // self.size)
        in_rank = (rank_NK[..., None] == torch.arange(self.size)).any(1)
        per_expert = torch.bincount(topk_idx.flatten(), minlength=num_experts).int()
        return in_rank.sum(0).int(), None, per_expert, in_rank, Event()

    def dispatch(
        self,
        x: Tensor,
        handle: Any = None,
        num_tokens_per_rank: Tensor | None = None,
        num_tokens_per_rdma_rank: Tensor | None = None,
        is_token_in_rank: Tensor | None = None,
        num_tokens_per_expert: Tensor | None = None,
        topk_idx: Tensor | None = None,
        topk_weights: Tensor | None = None,
        async_finish: bool = False,
    ) -> tuple[Any, ...]:
        assert x.dtype == torch.bfloat16
        assert x.is_contiguous()
        if handle is not None:
            assert topk_idx is None
            assert topk_weights is None
            sent = self._gather((x, handle["in_rank"]))
            return torch.cat([each[mask[:, self.rank]] for each, mask in sent]), None, None, None, None, Event()
        assert topk_idx is not None
        assert topk_weights is not None
        assert num_tokens_per_expert is not None
        assert topk_weights.dtype == torch.float32
        sent = self._gather((x, topk_idx, topk_weights, is_token_in_rank))
        mine = [tuple(part[mask[:, self.rank]] for part in parts) for *parts, mask in sent]
        rows, idx, weights = (torch.cat(parts) for parts in zip(*mine, strict=True))
        experts = len(num_tokens_per_expert) // self.size
        local = idx - self.rank * experts
        here = (local >= 0) & (local < experts)
        local = torch.where(here, local, -1)
        counts = torch.bincount(local[here], minlength=experts).tolist()
        return rows, local, torch.where(here, weights, 0.0), counts, {"in_rank": is_token_in_rank}, Event()

    def combine(self, x: Tensor, handle: Any, topk_weights: Tensor | None = None, async_finish: bool = False) -> Any:
        assert x.dtype == torch.bfloat16
        assert x.is_contiguous()
        masks = self._gather(handle["in_rank"])
        lengths = [int(mask[:, self.rank].sum()) for mask in masks]
        weights = x.new_zeros(len(x), 1) if topk_weights is None else topk_weights
        back = self._gather((x.split(lengths), weights.split(lengths)))
        mask = handle["in_rank"]
        out = torch.zeros(len(mask), x.shape[1])
        sums = torch.zeros(len(mask), weights.shape[1])
        for rank, (rows, each) in enumerate(back):
            out[mask[:, rank]] += rows[self.rank].float()
            sums[mask[:, rank]] += each[self.rank].float()
        return out.bfloat16(), None if topk_weights is None else sums, Event()

    def _gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found


def module() -> ModuleType:
    made = ModuleType("deep_ep")
    vars(made).update(Buffer=Buffer)
    return made
