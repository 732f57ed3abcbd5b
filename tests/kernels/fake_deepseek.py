"""Modules with the signatures of DeepSeek's, which check what those check and compute what their references compute."""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGNMENT = 128


def flash_mla_sparse_fwd(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    sm_scale: float,
    d_v: int = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
    indexer_topk: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """q [s_q, h_q, d_qk], kv [s_kv, 1, d_qk], indices [s_q, 1, topk]; invalid ones are -1 or at least s_kv."""
    assert q.dtype == kv.dtype == torch.bfloat16
    assert indices.dtype == torch.int32
    assert q.dim() == kv.dim() == indices.dim() == 3
    assert q.shape[2] == kv.shape[2] == d_v == 512
    assert q.shape[1] in (64, 128)
    assert kv.shape[1] == indices.shape[1] == 1
    assert indices.shape[2] % 128 == 0
    assert all(x.is_contiguous() for x in (q, kv, indices))
    assert not any(x.requires_grad for x in (q, kv)) or not torch.is_grad_enabled(), "there is no gradient"
    index = indices.squeeze(1).long()
    valid = (index >= 0) & (index < kv.shape[0])
    keys = kv.squeeze(1)[index.clamp(0, kv.shape[0] - 1)].float()
    scores = torch.einsum("qhc,qkc->qhk", q.float(), keys) * sm_scale
    scores = scores.masked_fill(~valid[:, None], -torch.inf)
    total = scores.logsumexp(-1)
    below = total if attn_sink is None else torch.logaddexp(total, attn_sink.expand_as(total))
    out = torch.einsum("qhk,qkc->qhc", (scores - below[..., None]).exp(), keys)
    return out.bfloat16(), scores.amax(-1), total


def sinkhorn_normalize(x: Tensor, repeat: int = 10, eps: float = 1e-6) -> Tensor:
    """TileKernels' published reference."""
    assert x.is_contiguous()
    assert x.dtype == torch.float32
    x = x.softmax(-1) + eps
    x = x / (x.sum(-2, keepdim=True) + eps)
    for _ in range(repeat - 1):
        x = x / (x.sum(-1, keepdim=True) + eps)
        x = x / (x.sum(-2, keepdim=True) + eps)
    return x


def m_grouped_bf16_gemm_nt_contiguous(a: Tensor, b: Tensor, d: Tensor, grouped_layout: Tensor) -> None:
    """d [M, N] = a [M, K] @ b [G, N, K].mT of the group of each row; -1 for rows of padding."""
    _grouped(a, b.mT, d, grouped_layout, b)


def m_grouped_bf16_gemm_nn_contiguous(a: Tensor, b: Tensor, d: Tensor, grouped_layout: Tensor) -> None:
    """The same with b [G, K, N]."""
    _grouped(a, b, d, grouped_layout, b)


def _grouped(a: Tensor, b_GKN: Tensor, d: Tensor, layout: Tensor, given: Tensor) -> None:
    assert a.dtype == given.dtype == d.dtype == torch.bfloat16
    assert layout.dtype == torch.int32
    assert all(x.is_contiguous() for x in (a, given, d, layout))
    assert layout.shape == (a.shape[0],)
    assert a.shape[0] == d.shape[0]
    assert a.shape[0] % ALIGNMENT == 0
    # a tile has one group: that of its first row
    for tile in range(0, a.shape[0], ALIGNMENT):
        rows = slice(tile, tile + ALIGNMENT)
        group = int(layout[tile])
        assert set(layout[rows].tolist()) <= {group, -1}
        assert group >= 0
        d[rows] = F.linear(a[rows].float(), b_GKN[group].float().mT).bfloat16()


def modules() -> dict[str, ModuleType]:
    """All modules by name."""
    gemm = {each.__name__: each for each in (m_grouped_bf16_gemm_nt_contiguous, m_grouped_bf16_gemm_nn_contiguous)}
    settings = {
        "get_theoretical_mk_alignment_for_contiguous_layout": lambda: ALIGNMENT,
        "set_mk_alignment_for_contiguous_layout": lambda alignment: None,
    }
    return {
        "flash_mla": _module("flash_mla", flash_mla_sparse_fwd=flash_mla_sparse_fwd),
        "deep_gemm": _module("deep_gemm", **gemm, **settings),
        "tile_kernels": _module("tile_kernels"),
        "tile_kernels.modeling.mhc.ops.sinkhorn": _module("sinkhorn", sinkhorn_normalize=sinkhorn_normalize),
    }


def _module(name: str, **contents: object) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(contents)
    return made
