"""Twins in C++ for few tokens on a CPU, without gradients: where text is written, calls cost more than arithmetic.

Each takes what its definition takes, and gives None where it does not apply.
Shapes: as in `reference`.
"""

from ctypes import c_int64

import torch
from torch import Tensor

from seektune.kernels.cpu.library import function
from seektune.kernels.reference.sparse_attention import Chosen, Prefix, Visible

WORK = 2**25
"""Multiplications of a call; beyond them torch's products, which use all cores, are faster."""
ROWS = 32
MATRIX = 2**20
"""Most tokens of a product with a matrix, and elements of it, that is read faster here than by torch."""
WIDE = {torch.bfloat16: torch.float32, torch.float32: torch.float32, torch.float64: torch.float64}
"""The dtype that one is computed in."""
STREAMS = 16
"""Most streams; see `hyper.cpp`."""


def hyper_read(
    streams_NSD: Tensor, fn_OI: Tensor, base_O: Tensor, scale_3: Tensor, iterations: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """See `reference.hyper_read`."""
    run = function("hyper_read", streams_NSD.dtype)
    tokens, n, width = streams_NSD.shape
    if run is None or n > STREAMS or not are(WIDE[streams_NSD.dtype], fn_OI, base_O, scale_3):
        return None
    x = streams_NSD.contiguous()
    fn = fn_OI.contiguous()
    base = base_O.contiguous()
    scale = scale_3.contiguous()
    y_ND = x.new_empty((tokens, width))
    write_NS = fn.new_empty((tokens, n))
    mix_NSS = fn.new_empty((tokens, n, n))
    run(*at(x, fn, base, scale, y_ND, write_NS, mix_NSS), tokens, n, width, iterations, eps, norm_eps)
    return y_ND, write_NS, mix_NSS


def hyper_write(streams_NSD: Tensor, y_ND: Tensor, write_NS: Tensor, mix_NSS: Tensor) -> Tensor | None:
    """See `reference.hyper_write`; tokens may have several dims."""
    dtype, (n, width) = streams_NSD.dtype, streams_NSD.shape[-2:]
    run = function("hyper_write", dtype)
    high = write_NS.dtype
    if run is None or y_ND.dtype != dtype or mix_NSS.dtype != high or high != WIDE[dtype]:
        return None
    x = streams_NSD.contiguous()
    y = y_ND.contiguous()
    write = write_NS.contiguous()
    mix = mix_NSS.contiguous()
    out = torch.empty_like(x)
    tokens = x.numel() // max(n * width, 1)
    run(x.data_ptr(), y.data_ptr(), write.data_ptr(), mix.data_ptr(), out.data_ptr(), tokens, n, width)
    return out


def hyper_collect(
    streams_NSD: Tensor, fn_SI: Tensor, base_S: Tensor, scale_1: Tensor, eps: float, norm_eps: float
) -> Tensor | None:
    """See `reference.hyper_collect`; tokens may have several dims."""
    run, (n, width) = function("hyper_collect", streams_NSD.dtype), streams_NSD.shape[-2:]
    if run is None or n > STREAMS or not are(WIDE[streams_NSD.dtype], fn_SI, base_S, scale_1):
        return None
    x = streams_NSD.contiguous()
    fn = fn_SI.contiguous()
    base = base_S.contiguous()
    scale = scale_1.contiguous()
    out = x.new_empty((*x.shape[:-2], width))
    tokens = x.numel() // max(n * width, 1)
    run(*at(x, fn, base, scale, out), tokens, n, width, eps, norm_eps)
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor | None:
    """See `reference.rms_norm`."""
    dtype = x.dtype
    width = x.shape[-1]
    run = function("rms_norm", dtype)
    if run is None or weight.dtype != dtype:
        return None
    x = x.contiguous()
    weight = weight.contiguous()
    out = torch.empty_like(x)
    run(x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.numel() // max(width, 1), width, eps)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor | None:
    """See `reference.rotate`; angles of a token may be shared by its heads."""
    run = function("rotate", x.dtype)
    width = x.shape[-1]
    heads = 1 if cos.shape[:-1] == x.shape[:-1] else x.shape[-2]
    if run is None or (heads != 1 and cos.shape[:-1] != (*x.shape[:-2], 1)):
        return None
    x, cos, sin = x.contiguous(), _angles(cos, x), _angles(sin, x)
    out = torch.empty_like(x)
    sizes = x.numel() // max(width, 1), heads, width, cos.shape[-1]
    run(x.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr(), *sizes)
    return out


def norm_rope(x_BTHC: Tensor, cos_BTR: Tensor, sin_BTR: Tensor, eps: float) -> Tensor | None:
    """See `reference.rotated_unit`."""
    run, (heads, width) = function("norm_rope", x_BTHC.dtype), x_BTHC.shape[-2:]
    if run is None or cos_BTR.shape[:-1] != x_BTHC.shape[:-2]:
        return None
    x = x_BTHC.contiguous()
    cos = _angles(cos_BTR, x_BTHC)
    sin = _angles(sin_BTR, x_BTHC)
    out = torch.empty_like(x)
    sizes = x.numel() // max(width, 1), heads, width, cos.shape[-1]
    run(x.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr(), *sizes, eps)
    return out


def clamped_swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor | None:
    """See `reference.clamped_swiglu`."""
    dtype = gate.dtype
    run = function("clamped_swiglu", dtype)
    if run is None or up.dtype != dtype:
        return None
    gate = gate.contiguous()
    up = up.contiguous()
    out = torch.empty_like(gate, dtype=WIDE[dtype])
    run(gate.data_ptr(), up.data_ptr(), out.data_ptr(), gate.numel(), limit)
    return out


def expert_mlp(
    x_ND: Tensor,
    tokens_P: Tensor,
    weights_P: Tensor,
    w1_EFD: Tensor,
    w2_EDF: Tensor,
    w3_EFD: Tensor,
    counts: list[int],
    limit: float,
) -> Tensor | None:
    """See `reference.expert_mlp`."""
    run = function("expert_mlp", x_ND.dtype)
    high = weights_P.dtype
    experts, inner, width = w1_EFD.shape
    if run is None or 3 * len(tokens_P) * inner * width > WORK:
        return None
    matrices = w1_EFD, w2_EDF, w3_EFD
    if high != WIDE[x_ND.dtype] or not (are(x_ND.dtype, *matrices) and all(w.is_contiguous() for w in matrices)):
        return None
    out_ND = torch.zeros(x_ND.shape, dtype=high)
    room = x_ND.new_empty((8 * inner,))
    inputs = at(x_ND.contiguous(), tokens_P.contiguous(), weights_P.contiguous(), *matrices)
    run(*inputs, (c_int64 * experts)(*counts), *at(out_ND, room), experts, width, inner, limit)
    return out_ND


def linear(x: Tensor, weight_OI: Tensor) -> Tensor | None:
    """See `reference.linear`."""
    dtype, (outputs, inputs) = x.dtype, weight_OI.shape
    run = function("grouped_linear", dtype)
    tokens = x.numel() // inputs
    if run is None or tokens > ROWS or outputs * inputs > MATRIX or weight_OI.dtype != dtype:
        return None
    x, weight, out = x.contiguous(), weight_OI.contiguous(), x.new_empty((*x.shape[:-1], outputs))
    run(x.data_ptr(), weight.data_ptr(), out.data_ptr(), tokens, 1, inputs, outputs)
    return out


def grouped_linear(x_NGI: Tensor, weight_OI: Tensor, groups: int) -> Tensor | None:
    """See `reference.grouped_linear`."""
    run, (outputs, inputs) = function("grouped_linear", x_NGI.dtype), weight_OI.shape
    tokens = x_NGI.numel() // (groups * inputs)
    if run is None or tokens > ROWS or outputs * inputs > MATRIX or weight_OI.dtype != x_NGI.dtype:
        return None
    x = x_NGI.contiguous()
    weight = weight_OI.contiguous()
    out = x_NGI.new_empty((*x_NGI.shape[:-1], outputs // groups))
    run(x.data_ptr(), weight.data_ptr(), out.data_ptr(), tokens, groups, inputs, outputs // groups)
    return out


def route(logits_NE: Tensor, bias_E: Tensor, k: int, factor: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """See `reference.route`."""
    run, (tokens, experts) = function("route", logits_NE.dtype), logits_NE.shape
    if run is None or bias_E.dtype != logits_NE.dtype or logits_NE.dtype == torch.bfloat16:
        return None
    logits = logits_NE.contiguous()
    bias = bias_E.contiguous()
    scores = torch.empty_like(logits)
    chosen_NK = torch.empty((tokens, k), dtype=torch.int64)
    weights_NK = logits.new_empty((tokens, k))
    run(*at(logits, bias, scores, chosen_NK, weights_NK), tokens, experts, k, factor)
    return chosen_NK, weights_NK, scores


def sort_pairs(experts_NK: Tensor, weights_NK: Tensor, n_experts: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """See `reference.sort_pairs`."""
    run = function("sort_pairs", weights_NK.dtype)
    pairs = experts_NK.numel()
    if run is None or weights_NK.dtype == torch.bfloat16:
        return None
    experts = experts_NK.contiguous()
    weights = weights_NK.contiguous()
    tokens_P = experts.new_empty(pairs)
    weights_P = weights.new_empty(pairs)
    counts_E = experts.new_empty(n_experts)
    run(*at(experts, weights, tokens_P, weights_P, counts_E), pairs, experts.shape[1], n_experts)
    return tokens_P, weights_P, counts_E


def pool_windows(
    values_BTK: Tensor, gates_BTK: Tensor, ape_MK: Tensor, last_BE: Tensor, position_BE: Tensor, overlap: bool
) -> Tensor | None:
    """See `reference.pool_windows`."""
    run = None if values_BTK.dtype == torch.bfloat16 else function("pool_windows", values_BTK.dtype)
    (rows, entries), (window, channels) = last_BE.shape, ape_MK.shape
    strides = values_BTK.stride()
    if run is None or not are(values_BTK.dtype, gates_BTK, ape_MK) or strides[2] != 1 or gates_BTK.stride() != strides:
        return None
    width = channels // 2 if overlap else channels
    out_BEC = values_BTK.new_empty(rows, entries, width)
    room = values_BTK.new_empty(2 * width)
    inputs = values_BTK, gates_BTK, ape_MK.contiguous(), last_BE.contiguous(), position_BE.contiguous()
    run(*at(*inputs, out_BEC, room), rows, entries, *strides[:2], window, channels, overlap)
    return out_BEC


def sparse_attention(
    q_BTHC: Tensor,
    keys_BNC: Tensor,
    entries_BEC: Tensor,
    sink_H: Tensor,
    positions_BT: Tensor,
    window: int,
    visible: Visible,
) -> Tensor | None:
    """See `reference.sparse_attention`."""
    run = function("sparse_attention", q_BTHC.dtype)
    high = sink_H.dtype
    rows, queries, heads, width = q_BTHC.shape
    most = visible.index_BTK.shape[-1] if isinstance(visible, Chosen) else entries_BEC.shape[1]
    if run is None or 2 * q_BTHC.numel() * (window + most) > WORK or high != WIDE[q_BTHC.dtype]:
        return None
    if not (are(q_BTHC.dtype, keys_BNC, entries_BEC) and _is_rows(keys_BNC) and _is_rows(entries_BEC)):
        return None
    if isinstance(visible, Chosen):
        lists = [visible.index_BTK.contiguous()] * 3
        listed = most if entries_BEC.shape[1] else 0
    else:
        lists = [q_BTHC, visible.first_BT.contiguous(), visible.count_BT.contiguous()]
        listed = -1
    q = q_BTHC.contiguous()
    sink = sink_H.contiguous()
    positions = positions_BT.contiguous()
    out = torch.empty_like(q)
    seen = window + most
    room = q.new_empty(seen * (heads + 2) + heads * width, dtype=high)
    sizes = rows, queries, keys_BNC.shape[1], heads, width, window, listed
    pointers = at(q, keys_BNC, entries_BEC, sink, positions, *lists, out, room)
    run(*pointers, *sizes, keys_BNC.stride(0), entries_BEC.stride(0), entries_BEC.shape[1])
    return out


def index_topk(q_BTHI: Tensor, keys_BEI: Tensor, weights_BTH: Tensor, visible: Prefix, k: int) -> Chosen | None:
    """See `reference.index_topk`; the order within a list may be another."""
    run = function("index_topk", q_BTHI.dtype)
    (rows, queries, heads, width), entries = q_BTHI.shape, keys_BEI.shape[1]
    if run is None or q_BTHI.numel() * entries > WORK or not are(q_BTHI.dtype, keys_BEI, weights_BTH):
        return None
    if not _is_rows(keys_BEI):
        return None
    k = min(k, entries)
    out_BTK = visible.first_BT.new_empty(rows, queries, k)
    scores, room = q_BTHI.new_empty((2, entries), dtype=WIDE[q_BTHI.dtype]).unbind()
    inputs = q_BTHI.contiguous(), keys_BEI, weights_BTH.contiguous()
    seen = visible.first_BT.contiguous(), visible.count_BT.contiguous()
    run(*at(*inputs, *seen, out_BTK, scores, room), rows, queries, heads, width, keys_BEI.stride(0), k)
    return Chosen(out_BTK)


def at(*tensors: Tensor) -> list[int]:
    """Where tensors lie."""
    return [x.data_ptr() for x in tensors]


def are(dtype: torch.dtype, *tensors: Tensor) -> bool:
    """Whether all are of a dtype."""
    return all(x.dtype == dtype for x in tensors)


def _angles(x: Tensor, like: Tensor) -> Tensor:
    high = WIDE[like.dtype]
    return (x if x.dtype == high else x.to(high)).contiguous()


def _is_rows(x_BNC: Tensor) -> bool:
    """Whether the vectors of a row follow each other."""
    return x_BNC.stride(2) == 1 and x_BNC.stride(1) == x_BNC.shape[2]
