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


def m_grouped_fp8_fp4_gemm_nt_contiguous(
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    d: Tensor,
    grouped_layout: Tensor,
    disable_ue8m0_cast: bool = False,
    recipe_a: tuple[int, int] | None = None,
    recipe_b: tuple[int, int] | None = None,
) -> None:
    """a e4m3 [M, K] with scales [M, K / 128]; b e4m3 [G, N, K] with scales per 128 x 128, or packed FP4.

    FP4 is int8 [G, N, K / 2], low half first, with scales [G, N, K / 32] and recipes of both. Scales are fp32, powers
    of two unless not cast.
    """
    (codes, factors), (weights, scales) = a, b
    fp4 = weights.dtype == torch.int8
    groups, outputs, inputs = weights.shape[0], weights.shape[1], weights.shape[2] * (2 if fp4 else 1)
    assert (recipe_a, recipe_b) == (((1, 128), (1, 32)) if fp4 else (None, None))
    assert codes.dtype == torch.float8_e4m3fn
    assert factors.dtype == scales.dtype == torch.float32
    assert factors.shape == (len(codes), inputs // 128)
    assert scales.shape == ((groups, outputs, inputs // 32) if fp4 else (groups, outputs // 128, inputs // 128))
    assert all(x.is_contiguous() for x in (codes, factors, weights))
    if not disable_ue8m0_cast:
        assert all(torch.equal(x, x.log2().ceil().exp2()) for x in (factors, scales))
    if fp4:
        values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
        nibbles = torch.stack([weights & 15, (weights >> 4) & 15], dim=-1).flatten(-2).long()
        decoded = values[nibbles & 7] * torch.where(nibbles >= 8, -1.0, 1.0) * scales.repeat_interleave(32, dim=2)
    else:
        decoded = weights.float() * scales.repeat_interleave(128, dim=1).repeat_interleave(128, dim=2)
    rows = codes.float() * factors.repeat_interleave(128, dim=1)
    for tile in range(0, len(rows), ALIGNMENT):
        group = int(grouped_layout[tile])
        assert set(grouped_layout[tile : tile + ALIGNMENT].tolist()) <= {group, -1}
        d[tile : tile + ALIGNMENT] = F.linear(rows[tile : tile + ALIGNMENT], decoded[group]).bfloat16()


def modules() -> dict[str, ModuleType]:
    """All modules by name."""
    bf16 = m_grouped_bf16_gemm_nt_contiguous, m_grouped_bf16_gemm_nn_contiguous
    gemm = {each.__name__: each for each in (*bf16, m_grouped_fp8_fp4_gemm_nt_contiguous)}
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
